"""Configurations that are not what they seem are refused with the file, the line and the reason."""

from pathlib import Path

import pytest

from scor_lightning.cli import fit
from scor_lightning.cli.compare import run as compare
from tests.mistakes import told

FILES = {
    "trainer: {max_epochs: 1}\nmodel: {}\ntrainer: {max_epochs: 2}\n": ["'trainer' twice", "lines 1 and 3"],
    "trainer: {max_epochs: 1, max_epochs: 2}\n": ["'max_epochs' twice"],
    "model: &m\n  loss: *m\n": ["contains itself", "line 1"],
    "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    + "".join(f"{x}: &{x} [{', '.join([f'*{y}'] * 10)}]\n" for x, y in ("ba", "cb", "dc", "ed", "fe", "gf")): [
        "100,000 values"
    ],
    "trainer: {max_epochs: 1\n": ["line 2"],
    "trainer:\n\tmax_epochs: 1\n": ["line 2"],
    "trainer: [" * 2000: ["mine.yaml"],
    "trainer: 'caf\xe9'\n".encode("latin-1"): ["UTF-8", "mine.yaml"],
    "training: [digits_scor.yaml]\nmethods: {}\n": ["comparison", "scor-compare"],
    "trainer: {max_epoch: 1}\n": ["--trainer.max_epoch", "did you mean --trainer.max_epochs"],
    "trainer: {max_epochs: ten}\n": ["--trainer.max_epochs", "an int", "'ten'"],
    "modle: {lr_warmup: 1}\n": ["modle"],
    "- 1\n- 2\n": ["mine.yaml"],
    "just text\n": ["mine.yaml"],
    "config: [nothing.yaml]\n": ["nothing.yaml"],
    "config: [mine.yaml]\n": ["mine.yaml", "include itself"],
}


@pytest.mark.parametrize("content", FILES, ids=lambda content: str(content)[:40])
def test_a_wrong_configuration_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    told(fit.run, "--config digits_scor.yaml --config mine.yaml", FILES[content])
    if "comparison" not in FILES[content]:
        told(
            compare,
            "--config digits_scor.yaml --config mine.yaml --methods loss/focal.yaml loss/scor.yaml",
            FILES[content],
        )
    assert [path.name for path in Path().iterdir()] == ["mine.yaml"]


def test_class_weights_are_read_from_a_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = [1.0] * 9 + [2.0]
    loss = f"{{class_path: torch.nn.CrossEntropyLoss, init_args: {{weight: {weights}}}}}"
    Path("mine.yaml").write_text(f"model: {{loss: {loss}}}\ntrainer: {{max_epochs: 1, logger: false}}\n")
    fit.run(["--config", "digits_scor.yaml", "--config", "mine.yaml"])
    assert "weight:" in next(Path("runs").rglob("config.yaml")).read_text()
    fit.run(
        ["--config", "digits_scor.yaml", "--config", "mine.yaml", "--trainer.max_epochs", "2", "--ckpt_path", "last"]
    )
