"""The import rule of the architecture: a room imports only from its left, and some never import heavy ones early."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "swift"
LAYERS = [
    {"errors"},
    {"i18n"},
    {"runs", "say", "children", "environments"},
    {"config", "catalog"},
    {"hub", "compat", "plugins"},
    {"chat", "models"},
    {"data"},
    {"train", "engines", "export"},
    {"serve", "evaluate", "advise"},
    {"web", "cli", "launch", "__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "accelerate",
    "gradio",
    "fastapi",
    "numpy",
    "pyarrow",
    "rich",
}
LIGHT_ROOMS = {
    "cli",
    "config",
    "catalog",
    "hub",
    "errors",
    "runs",
    "i18n",
    "say",
    "children",
    "environments",
    "launch",
    "plugins",
}
FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, at module level) of every import; what stands under TYPE_CHECKING is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found.extend((f"{module}.{a.name}" if module == "swift" else module, top) for a in node.names)
        inner = top and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(tree, True)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_from_its_left(path):
    room = room_of(path)
    for module, _ in imports(path):
        if module.startswith("swift."):
            other = module.split(".")[1]
            if other in RANK and other != room:
                assert RANK[other] < RANK[room] or (
                    RANK[other] == RANK[room]
                    and room in ("config", "runs", "environments", "train", "engines", "export", "cli", "__main__")
                ), f"{room} imports {module}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if room_of(p) in LIGHT_ROOMS], ids=lambda p: str(p.relative_to(ROOT))
)
def test_light_rooms_import_nothing_heavy_at_module_level(path):
    heavy = [m for m, top in imports(path) if top and m.split(".")[0] in HEAVY]
    assert not heavy


def test_every_room_has_a_rank():
    assert {room_of(p) for p in FILES} <= set(RANK)
