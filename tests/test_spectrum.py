import os
import sys
from math import prod
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torchvision
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scor_lightning import weight_spectrum
from scor_lightning.__main__ import main
from scor_lightning.cli import spectrum
from scor_lightning.spectrum import describe_skipped, input_sizes, select_layers, spectrum_table


class Everything(nn.Module):
    """One of each kind of layer."""

    num_classes = 5

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.place = nn.Parameter(torch.randn(3, 4))
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, groups=4)
        self.up = nn.ConvTranspose2d(12, 6, 2)
        self.attention = nn.MultiheadAttention(6, 2)
        self.bounded = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4))
        self.twin = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.again.weight = self.twin.weight
        self.head = nn.Linear(4, 5)
        self.aside = nn.Linear(4, 9)

    def forward(self, images):
        features = self.up(self.grouped(self.norm(self.conv(images)))).mean((2, 3))
        return self.head(self.twin(self.bounded(features)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Everything().eval()


def test_what_is_read_and_what_not_is_said_with_the_reason(model):
    found = weight_spectrum(model)
    shapes = {name: layer.shape for name, layer in found.layers.items()}
    assert shapes == {
        "conv": (8, 27),
        "grouped": (12, 72),
        "up": (12, 24),
        "attention.in_proj_weight": (18, 6),
        "attention.out_proj": (6, 6),
        "bounded": (4, 6),
        "twin": (4, 4),
        "head": (5, 4),
        "aside": (9, 4),
    }
    assert describe_skipped(found.skipped) == [
        "skipped: place (not called `weight`)",
        "skipped: table.weight (look-up tables)",
        "skipped: conv.bias, norm.weight, norm.bias and 9 more (vectors)",
        "skipped: again.weight (shared with twin.weight)",
    ]
    assert found.classifier == "head"
    assert torch.allclose(found.row_norms, model.head.weight.double().norm(dim=1))
    assert found.seconds > 0


def test_values_and_measures_are_those_of_the_layers(model):
    found = weight_spectrum(model)
    for name, layer in found.layers.items():
        owner = model.attention.in_proj_weight if "in_proj" in name else model.get_submodule(name).weight
        matrix = owner.detach().double().flatten(1)
        if name == "grouped":
            matrix = torch.block_diag(*matrix.view(4, 3, 18))
        expected = torch.linalg.svdvals(matrix)
        assert torch.allclose(layer.values, expected[: len(layer.values)], rtol=1e-9), name
        assert layer.measures["rank"] == torch.linalg.matrix_rank(matrix.float())
        assert layer.measures["frobenius_norm"] == pytest.approx(float(matrix.norm()), rel=1e-9)
    # As it enters the layer: power iteration has not converged, so the largest is near 1.
    assert found.layers["bounded"].measures["sigma_max"] == pytest.approx(1, abs=0.3)
    assert [record["layer"] for record in found.records()] == list(found.layers)
    assert found.records()[-1]["columns"] == 4


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("classifier", ["head"]),
        ("head", ["head"]),
        ("*e*d*", ["grouped", "bounded", "head"]),
        ("attention.*", ["attention.in_proj_weight", "attention.out_proj"]),
    ],
)
def test_layers_are_chosen(model, layers, names):
    found = weight_spectrum(model, layers)
    assert list(found.layers) == names
    assert (found.row_norms is not None) == ("head" in names)


def test_the_classifier_of_well_known_networks_is_found():
    heads = {"resnet18": "fc", "convnext_tiny": "classifier.2", "vit_b_16": "heads.head", "googlenet": "fc"}
    for name, head in heads.items():
        with torch.device("meta"):
            network = torchvision.models.get_model(name, weights=None, num_classes=12)
        found = select_layers(network, "classifier", num_classes=12)
        assert list(found.layers) == [head]


def test_a_depthwise_convolution_is_read_by_group():
    with torch.device("meta"):
        network = torchvision.models.convnext_tiny(weights=None)
    layer = select_layers(network).layers["features.1.0.block.0"]
    assert (layer.groups, layer.shape) == (96, (96, 96 * 49))
    conv = nn.Conv2d(96, 96, 7, groups=96)
    values = weight_spectrum(conv).layers["weight"].values
    assert torch.allclose(values, conv.weight.detach().double().flatten(1).norm(dim=1).sort(descending=True).values)


def test_the_circular_operator_is_taken_where_there_is_one(model):
    sizes = input_sizes(model.train(), torch.randn(1, 3, 9, 7))
    assert sizes == {"conv": (9, 7), "grouped": (9, 7)}
    assert all(module.training for module in model.modules())
    found = weight_spectrum(model.eval(), convolution="circular", sizes=sizes)
    assert found.layers["conv"].shape == (8 * 63, 3 * 63)
    assert len(found.layers["conv"].values) == 3 * 63
    assert found.layers["head"].shape == (5, 4)
    assert found.skipped["grouped.weight"] == "no circular operator with stride 2"
    assert found.skipped["up.weight"] == "no circular operator of ConvTranspose2d"
    small = weight_spectrum(model, "conv", convolution="circular", sizes={"conv": (2, 2)})
    assert small.skipped["conv.weight"] == "no circular operator with a kernel larger than the input"
    with pytest.raises(ValueError, match="Expected a network and `sizes`"):
        weight_spectrum(model, convolution="circular")
    with pytest.raises(ValueError, match='"kernel" or "circular" but got \'fft\''):
        weight_spectrum(model, convolution="fft")


def test_a_layer_that_is_not_finite_is_skipped_and_the_others_of_its_shape_are_not():
    network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    network[1].weight.data[2, 2] = torch.nan
    found = weight_spectrum(network)
    assert list(found.layers) == ["0", "2"]
    assert found.skipped["1.weight"] == "not finite"
    attention = nn.MultiheadAttention(4, 2)
    attention.in_proj_weight.data[0, 0] = torch.inf
    assert weight_spectrum(attention).skipped["in_proj_weight"] == "not finite"
    linear = nn.Linear(2, 2)
    linear.weight.data[0, 0] = torch.inf
    assert weight_spectrum(linear).skipped["weight"] == "not finite"


def test_looking_does_not_change_what_is_trained():
    network = nn.Sequential(*(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4 + i)) for i in range(4))).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = weight_spectrum(network)
    assert list(found.layers) == ["0", "1", "2", "3"]  # none taken for another that is gone
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())


def test_lazy_compiled_and_empty_networks():
    compiled = torch.compile(nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(4)))
    found = weight_spectrum(compiled)
    assert list(found.layers) == ["0"]
    assert found.skipped["1.weight"] == "not initialised"
    with pytest.raises(ValueError, match="at least two dimensions but found none"):
        weight_spectrum(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"a pattern of 0 but got 'fc'"):
        weight_spectrum(nn.Sequential(nn.Linear(3, 2)), "fc")
    with pytest.raises(ValueError, match="a row for each of the 7 classes but found none"):
        weight_spectrum(nn.Linear(3, 2), "classifier", num_classes=7)


def test_sharded_weights_are_refused(tmp_path):
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        with pytest.raises(ValueError, match="Expected whole weights but got weight sharded over processes"):
            weight_spectrum(fully_shard(nn.Linear(4, 4), mesh=mesh))
    finally:
        dist.destroy_process_group()


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that is created, in bytes."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        old = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in old:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


def test_no_second_matrix_of_the_size_of_a_large_one_is_made():
    network = nn.Sequential(nn.Linear(200_000, 64, bias=False), nn.Linear(64, 200_000, bias=False))
    with torch.no_grad():
        network[1].weight[:, 7] = network[1].weight[:, 8]  # as the guard sees it
    with Largest() as largest:
        found = weight_spectrum(network)
    assert found.layers["1"].measures["rank"] == 63
    parts = 2**22 * 8
    assert largest.bytes <= 1.1 * parts < 0.8 * network[0].weight.nbytes


def test_the_table_has_networks_below_one_another(model):
    other = nn.Sequential()
    other.head = nn.Linear(4, 5)
    lines = spectrum_table({"one": weight_spectrum(model), "two": weight_spectrum(other)}).splitlines()
    assert lines[0].split()[:3] == ["layer", "network", "matrix"]
    heads = [line.split()[:2] for line in lines if line.startswith("head")]
    assert heads == [["head", "one"], ["head", "two"]]
    assert len(lines) == 1 + 9 + 1
    assert "network" not in str(weight_spectrum(model))


@pytest.fixture
def scor_spectrum(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*line):
        monkeypatch.setattr(sys, "argv", ["scor-spectrum", *map(str, line)])
        status = 0
        try:
            spectrum.main()
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
            status = stop.code if isinstance(stop.code, int) else 1
        return status, *capsys.readouterr()

    return call


def test_scor_spectrum_shows_checkpoints_side_by_side(scor_spectrum, model):
    for name in ("one", "two"):
        Path(name).mkdir()
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, f"{name}/best.ckpt")
    status, out, error = scor_spectrum("one/best.ckpt", "two/best.ckpt")
    assert (status, error) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert [row[1] for row in rows if row[0] == "head"] == ["one", "two"]
    assert f"{float(torch.linalg.svdvals(model.head.weight.detach())[0]):.4g}" in out
    assert "Picture: spectrum.png" in out
    assert prod(Image.open("spectrum.png").size) > 200_000
    status, out, _ = scor_spectrum("one/best.ckpt", "--layers", "head", "--picture", "head.png")
    assert status == 0
    assert len(out.splitlines()) == 3
    assert Path("head.png").is_file()


@pytest.mark.parametrize("lines", [["-h"], []])
def test_scor_spectrum_shows_its_usage(scor_spectrum, lines):
    status, out, error = scor_spectrum(*lines)
    assert status == 0
    assert "scor-spectrum" in out + error
    assert "CHECKPOINT" in out + error


def test_scor_spectrum_refuses_in_one_line(scor_spectrum, model):
    torch.save(model.state_dict(), "weights.pt")
    torch.save({"state_dict": {}}, "empty.pt")
    torch.save([1, 2], "list.pt")
    torch.save(os.system, "program.pt")
    Path("text.pt").write_text("hello")
    for line, message in [
        (["weights.pt", "weights.pt"], "Expected different checkpoints"),
        (["none.pt"], "there is no file 'none.pt'"),
        (["empty.pt"], "expected weights by name in 'empty.pt'"),
        (["list.pt"], "expected weights by name in 'list.pt' but found list"),
        (["program.pt"], "'program.pt' holds more than data"),
        (["text.pt"], "'text.pt' is damaged, cut off, or another kind of file"),
        (["weights.pt", "--layers", "nose"], "but got 'nose'"),
        (["weights.pt", "--picture", "no/where.png"], "Expected `--picture`"),
        (["weights.pt", "--picture", "picture.jpg"], "Expected `--picture`"),
    ]:
        status, out, error = scor_spectrum(*line)
        assert (status, out) == (1, "")
        assert error.startswith(("scor-spectrum: error: Expected", "scor-spectrum: error: CHECKPOINT: expected"))
        assert message in error
        assert len(error.splitlines()) == 1
    assert not list(Path.cwd().glob("*.png"))


def test_python_m_scor_lightning_spectrum(scor_spectrum, monkeypatch, capsys, model):
    torch.save(model.state_dict(), "weights.pt")
    monkeypatch.setattr(sys, "argv", ["scor_lightning", "spectrum", "weights.pt"])
    main()
    assert "attention.in_proj_weight" in capsys.readouterr().out


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (224, 224)])
def test_the_rank_of_a_circular_operator_does_not_fall_with_the_size_of_the_image(size):
    conv = nn.Conv2d(1, 1, 3, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1], conv.weight[0, 0, 1, 2] = 1.0, 0.9  # values from 0.1 to 1.9
    layer = weight_spectrum(conv, convolution="circular", sizes={"weight": size}).layers["weight"]
    assert layer.measures["rank"] == size[0] * size[1]
    assert layer.measures["sigma_min"] == pytest.approx(0.1, abs=0.01)
    with torch.no_grad():  # of two equal filters half of the values are zero
        conv = nn.Conv2d(2, 2, 3, bias=False)
        conv.weight[1] = conv.weight[0]
    layer = weight_spectrum(conv, convolution="circular", sizes={"weight": size}).layers["weight"]
    assert layer.measures["rank"] == size[0] * size[1]
