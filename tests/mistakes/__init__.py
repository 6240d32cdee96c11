"""Mistakes of users, and the messages for them."""

from collections.abc import Callable

import pytest

from scor_lightning.cli.errors import describe_error, one_line

JARGON = ("Parser key", "Does not validate", "Namespace", "<class", "Traceback", "init_args", "weights_only")


def told(run: Callable[[list[str]], None], line: str, named: tuple[str, ...] | list[str], limit: int = 200) -> None:
    """Run a command that has to end with one short line, free of jargon, that names what is wrong."""
    with pytest.raises(Exception) as raised:  # noqa: PT011
        run(line.split())
    said = describe_error(raised.value)
    assert said is not None, raised.value
    said = one_line(said)
    assert len(said) < limit, said
    assert all(name in said for name in named), said
    assert not any(jargon in said for jargon in JARGON), said
