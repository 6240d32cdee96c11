"""Restrict what a checkpoint, or the configuration beside it, may build to classes of known packages."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from scor_lightning.messages import explain

PACKAGES = ("scor_lightning", "torch", "torchvision", "torchmetrics", "lightning", "timm")


@contextmanager
def only_known_classes(content: Mapping[str, Any], source: str, trust_code: bool = False) -> Iterator[None]:
    """Restrict what jsonargparse imports in this context to classes of :data:`PACKAGES`.

    An option still accepts only classes of the type that it expects. A function is never imported, even from a
    known package: ``torch.hub.load`` downloads code and runs it.

    Args:
        content: The options in the file, to name the refused one.
        source: The file.
        trust_code: Whether to admit classes of any package; functions are always refused.

    Raises:
        ValueError: If the file names anything else; the message names the option.
    """
    from jsonargparse import _typehints, set_parsing_settings
    from jsonargparse._common import parsing_settings

    refused: list[str] = []
    before, find = dict(parsing_settings), _typehints.import_object  # type: ignore[attr-defined]

    def find_class(name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            found = find(name, *args, **kwargs)
        except (ImportError, AttributeError, ValueError):
            refused.append(name)
            raise
        if not inspect.isclass(found):
            refused.append(name)
            raise ImportError(f"{name} is not a class")
        return found

    set_parsing_settings(
        import_path_denylist=[] if trust_code else ["*"],
        import_path_allowlist=[] if trust_code else list(PACKAGES),
        instantiate_subclass_spec_in_any=False,
    )
    _typehints.import_object = find_class  # type: ignore[attr-defined]
    try:
        yield
    except Exception as error:
        if refused:
            raise ValueError(_refusal(refused[0], content, source, trust_code)) from error
        if 'Parser key "' in str(error):  # from Lightning's parser of hyperparameters
            raise ValueError(f"{source!r}: {explain(str(error)).replace('--module.', '--model.')}") from error
        raise
    finally:
        _typehints.import_object = find  # type: ignore[attr-defined]
        parsing_settings.clear()
        parsing_settings.update(before)


def _refusal(name: str, content: Mapping[str, Any], source: str, trust_code: bool) -> str:
    option = _option_of(name, content)
    named = f"--{option}: {source!r} names {name!r}" if option else f"{source!r} names {name!r}"
    if name.partition(".")[0] in PACKAGES:
        return f"{named}, which is not a class that can be imported"
    if trust_code:
        return f"{named}, which is not a class that can be imported; is its file on PYTHONPATH?"
    return f"{named}, from an unknown package; `--trust_code true` (Python: trust_code=True) allows its classes"


def _option_of(name: str, content: Any, path: str = "") -> str | None:
    """Return the option that has a name as its value, spelled as on the command line."""
    if content == name:
        return path
    items = content.items() if isinstance(content, Mapping) else ()
    for key, value in items if not isinstance(content, list) else enumerate(content):
        inner = path if key in ("class_path", "init_args", "dict_kwargs") or isinstance(key, int) else f"{path}.{key}"
        if (found := _option_of(name, value, inner.removeprefix("."))) is not None:
            return found
    return None
