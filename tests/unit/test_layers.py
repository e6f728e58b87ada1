"""Imports go down the layers of docs/architecture.md only, and every module has its place there."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "kernel_lab"
TABLE = PACKAGE.parent / "docs" / "architecture.md"


def layers() -> dict[str, int]:
    """The layer of every module or package that the table names: `| 3 | container, plan | … |`."""
    rows = (line.split("|") for line in TABLE.read_text().splitlines() if line.startswith("| ") and line.split("|")[1].strip().isdigit())
    return {name.strip(): int(cells[1]) for cells in rows for name in cells[2].split(",")}


def place(module: str, known: dict[str, int]) -> str:
    """The longest name in the table that `module` is, or is inside."""
    words = module.split(".")
    return next((name for end in range(len(words), 0, -1) if (name := ".".join(words[:end])) in known), "")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kernel_lab"):
            base = node.module.removeprefix("kernel_lab").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                is_module = (PACKAGE / (inner.replace(".", "/") + ".py")).exists() or (PACKAGE / inner.replace(".", "/")).is_dir()
                found.add(inner if is_module else base)
    return found - {""}


def test_imports_go_down() -> None:
    known = layers()
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if module in ("__init__", ""):
            continue
        own = place(module, known)
        assert own, f"{module} has no place in docs/architecture.md"
        for other in imports(path):
            there = place(other, known)
            assert there, f"{module} imports {other}, which has no place in docs/architecture.md"
            if there != own and known[there] >= known[own]:
                wrong.append(f"{module} (layer {known[own]}) imports {other} (layer {known[there]})")
    assert not wrong, "\n".join(wrong)
