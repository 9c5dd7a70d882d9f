"""The house's rules that a program can check."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "platform" / "graft"
LAYERS = (
    {"spec", "sections", "specfile", "swept", "hosted", "errors", "hashing", "seeds", "storage", "arrays"},
    {"models", "store", "cluster"},
    {"graph", "node", "execution", "tasks"},
    {"methods", "crew", "pool", "estimators"},
    {"results", "pretraining", "training"},
    {"planning"},
    {"runner", "runs", "costs"},
    {"sweeps", "serving", "prediction", "diagnosis"},
    {"terminal"},
    {"cli"},
)
"""Bottom first; a module imports from its own layer and from those below."""


def layer(module: str) -> int:
    return next(height for height, names in enumerate(LAYERS) if module in names)


def imports(path: Path) -> set[str]:
    """Top-level names below graft that a file imports for use, annotations aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "graft":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("graft.")}
    return found


FILES = [path for path in sorted(HOUSE.rglob("*.py")) if path != HOUSE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_imports_go_downward_only(path: Path) -> None:
    own = path.relative_to(HOUSE).parts[0].removesuffix(".py")
    # The spec's run() is the one door upward, opened when it is called.
    allowed = {"runner"} if own == "spec" else set()
    upward = {name for name in imports(path) - allowed if layer(name) > layer(own)}
    assert not upward


def test_platform_never_becomes_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    import platform

    assert platform.system()


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert not {path.stem for path in FILES} & {"utils", "helpers", "misc", "common", "base"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_no_pickles_and_no_prints(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for forbidden in ("pickle.load", "torch.load(", "allow_pickle=True", "trust_remote_code=True"):
        assert forbidden not in text
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert path.name == "cli.py" or "print" not in calls


def test_the_tests_run_the_code_of_this_checkout() -> None:
    import graft

    assert Path(graft.__file__).is_relative_to(HOUSE), sys.path
