"""No module imports from a higher layer, and none imports itself by way of others."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "scor_lightning"
LAYERS = [
    *(
        {
            "functional",
            "seeding",
            "files",
            "signals",
            "messages",
            "help",
            "trust",
            "description",
            "known_data",
            "mixing",
            "parts",
        },
        {"metrics", "models", "optim", "schedules"},
    ),
    *(
        {"checkpoint", "export"},
        {"losses", "datamodules", "spectrum", "evaluation"},
        {"figures", "loggers", "second_stage", "features"},
        {"callbacks"},
    ),
    *(
        {"classifier"},
        {"stages"},
        {"configuration"},
        {"parser"},
        {"comparison", "prediction"},
        {"cli"},
        {"__init__", "__main__"},
    ),
]


def imports() -> dict[str, set[str]]:
    """The modules of the package that each of them imports, wherever in the file."""
    files = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & files.keys()
                names |= inner or {node.module}
        found[module] = (names & files.keys()) - {"scor_lightning", module}
    return found


def layer(module: str) -> int:
    part = [*module.split("."), "__init__"][1]
    return next(i for i, names in enumerate(LAYERS) if part in names)


def test_no_module_imports_from_a_higher_layer():
    upward = [f"{a} imports {b}" for a, names in imports().items() for b in names if layer(b) > layer(a)]
    assert not upward


def test_no_imports_are_circular():
    TopologicalSorter(imports()).prepare()
