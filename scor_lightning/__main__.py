"""``python -m scor_lightning fit ...`` runs ``scor-fit ...``; use it with ``torchrun``."""

import sys
from importlib import import_module

COMMANDS = ("fit", "validate", "test", "predict", "compare", "report", "spectrum")


def main() -> None:
    """Run the command that the first argument names."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        import_module(f"scor_lightning.cli.{sys.argv[1]}").main()
    elif sys.argv[1:] == ["--version"]:
        print(import_module("scor_lightning.cli.errors").versions())
    elif sys.argv[1:] in (["--help"], ["-h"]):
        print(f"usage: python -m scor_lightning {{{','.join(COMMANDS)}}} ...; each without options shows its help")
    else:
        sys.exit(f"usage: python -m scor_lightning {{{','.join(COMMANDS)}}} ...")


if __name__ == "__main__":
    main()
