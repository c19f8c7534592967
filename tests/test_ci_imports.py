"""The scripts of ci/ import what there is: nobody starts them every day."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

CI = Path(__file__).parents[1] / "ci"
SCRIPTS = sorted(CI.rglob("*.py"))


def missing(script: Path) -> list[str]:
    """What a script imports from xdan, or from a script beside it, and does not exist."""
    gone = []
    for node in ast.walk(ast.parse(script.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        beside = CI / f"{node.module}.py"
        if node.module.split(".")[0] == "xdan":
            module = import_module(node.module)
            gone += [f"{node.module}.{one.name}" for one in node.names if not _holds(module, node.module, one.name)]
        elif beside.exists():
            names = _defined(beside)
            gone += [f"{node.module}.{one.name}" for one in node.names if one.name not in names]
    return gone


def _holds(module: object, name: str, attribute: str) -> bool:
    if hasattr(module, attribute):
        return True
    try:
        import_module(f"{name}.{attribute}")
    except ModuleNotFoundError:
        return False
    return True


def _defined(script: Path) -> set[str]:
    """Names that a script binds on its first level."""
    names: set[str] = set()
    for node in ast.parse(script.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {one.asname or one.name for one in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
    return names


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_imports_exists(script: Path) -> None:
    assert not missing(script)


def test_a_name_that_is_gone_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from xdan.core.methods.registry import _NOT_THERE, register_method\n")
    assert missing(script) == ["xdan.core.methods.registry._NOT_THERE"]
