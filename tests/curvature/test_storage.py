"""The Hessian survives the disk unchanged, and a damaged or foreign file is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mlflow_relabel_audit.curvature import load_hessian, save_hessian
from mlflow_relabel_audit.curvature.storage import ARRAYS, FACTS
from mlflow_relabel_audit.errors import StaleCurvatureError
from tests.flips.fitting import fitted


@pytest.mark.parametrize("kind", ["primal", "dual", "cg"])
def test_round_trip(kind: str, tmp_path: Path) -> None:
    model = fitted(kind=kind)
    save_hessian(model.point, tmp_path, "print")
    restored = load_hessian(tmp_path, "print", model.problem, model.rows)
    assert restored is not None
    theta, curvature = restored
    right = np.random.default_rng(0).standard_normal((model.rows.p, 2))
    assert np.array_equal(theta, model.point.theta)
    assert np.array_equal(curvature.solve(right), model.point.curvature.solve(right))
    assert curvature.condition == model.point.curvature.condition


def test_a_factor_above_the_limit_is_not_stored(tmp_path: Path) -> None:
    model = fitted()
    save_hessian(model.point, tmp_path, "print", limit=10)
    assert not json.loads((tmp_path / FACTS).read_text())["factor_stored"]
    assert load_hessian(tmp_path, "print", model.problem, model.rows) is None
    with np.load(tmp_path / ARRAYS) as arrays:
        assert sorted(arrays.files) == ["diagonal", "theta"]


@pytest.mark.parametrize("damage", ["foreign", "flipped byte", "truncated", "no facts", "other shape", "pickle"])
def test_what_does_not_fit_is_refused(damage: str, tmp_path: Path) -> None:
    model = fitted()
    save_hessian(model.point, tmp_path, "print")
    arrays, facts = tmp_path / ARRAYS, tmp_path / FACTS
    other = model
    if damage == "foreign":
        facts.write_text(facts.read_text().replace("print", "other"))
    elif damage == "flipped byte":
        content = bytearray(arrays.read_bytes())
        content[len(content) // 2] ^= 1
        arrays.write_bytes(bytes(content))
    elif damage == "truncated":
        arrays.write_bytes(arrays.read_bytes()[:50])
    elif damage == "no facts":
        facts.unlink()
    elif damage == "other shape":
        other = fitted(p=6)
    else:
        np.savez(arrays, theta=np.array([object()]))
    with pytest.raises(StaleCurvatureError, match="computed again"):
        load_hessian(tmp_path, "print", other.problem, other.rows)
