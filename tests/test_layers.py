"""The order in which modules may import each other, and the shape of the house."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mlflow_relabel_audit"

# From the bottom up. A module imports its own layer and those below.
LAYERS = (
    {"errors"},
    {"likelihood"},
    {"problem"},
    {"rows"},
    {"curvature"},
    {"flips"},
    {"analyses"},
    {"inputs"},
    {"auditor"},
    {"tracking"},
    {"reports"},
    {"stages"},
    {"audit", "comparison", "review"},
    {"autolog", "cli", "corrected", "dataset_source", "demo", "evaluator", "gate", "provider"},
)
# The same inside the two large layers.
INNER = {
    "flips": ({"budget", "relabelling"}, {"removal"}, {"order", "refit", "rankings"}, {"certificate"}, {"search"}),
    "analyses": (
        {"checkpoint", "findings", "flip_table"},
        {"groups", "noise", "robustness"},
        {"bias_findings", "compare", "decision"},
        {"bias", "contest"},
    ),
}
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
NUMERICAL = {"likelihood", "problem", "rows", "curvature", "flips", "analyses", "inputs", "auditor"}
MEETS_MLFLOW = {"tracking", *LAYERS[-1]}
LONGEST = 450

MODULES = sorted(path for path in (ROOT / PACKAGE).rglob("*.py"))


def name_of(path: Path) -> str:
    """The layer a file belongs to; "" for the package's own __init__."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module a file imports, wherever in the file, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            yield module, node.lineno
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def inner(path: Path) -> Iterator[tuple[str, int]]:
    """The layers of this package a file imports."""
    for module, line in imports(path):
        parts = module.split(".")
        if parts[0] == PACKAGE and len(parts) > 1 and parts[1] in RANK:
            yield parts[1], line


def test_every_module_has_a_layer():
    assert {name_of(path) for path in MODULES} - {""} <= set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / PACKAGE)))
def test_imports_go_down(path):
    layer = name_of(path)
    if not layer:
        return
    up = [f"{path.name}:{line} imports {other}" for other, line in inner(path) if RANK[other] > RANK[layer]]
    assert not up


@pytest.mark.parametrize("layer", INNER)
def test_imports_go_down_inside_a_layer(layer):
    rank = {name: rank for rank, names in enumerate(INNER[layer]) for name in names}
    here = ROOT / PACKAGE / layer
    up = []
    for path in here.rglob("*.py"):
        own = path.relative_to(here).with_suffix("").parts[0]
        if own == "__init__":
            continue
        for module, line in imports(path):
            parts = module.split(".")
            if parts[:2] == [PACKAGE, layer] and len(parts) > 2 and rank[parts[2]] > rank[own]:
                up.append(f"{path.relative_to(here)}:{line} imports {parts[2]}")
    assert not up


def test_only_the_edges_meet_mlflow():
    found = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if name_of(path) not in MEETS_MLFLOW and any(module.split(".")[0] == "mlflow" for module, _ in imports(path))
    }
    assert not found


def test_reports_know_no_store_and_numbers_know_neither():
    for path in MODULES:
        layers = {other for other, _ in inner(path)}
        if name_of(path) == "reports":
            assert "tracking" not in layers, path
        if name_of(path) in NUMERICAL:
            outside = {module.split(".")[0] for module, _ in imports(path)}
            assert not outside & {"mlflow", "click", "jinja2", "requests"}, path


def test_files_stay_short():
    long = {}
    for folder in (PACKAGE, "tests", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            if (lines := path.read_text(encoding="utf-8").count("\n")) > LONGEST:
                long[str(path.relative_to(ROOT))] = lines
    assert not long


def test_no_module_is_named_for_nothing():
    vague = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not [path for path in MODULES if vague & {*path.relative_to(ROOT).parts, path.stem}]
