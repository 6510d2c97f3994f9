"""The Hessian on disk: ``hessian.npz`` (arrays, never pickled) and ``hessian.json`` (what they are).

The minimiser is stored with its curvature, so that a second audit neither polishes nor factors. A file whose
fingerprint, checksum or shapes do not fit is refused with `StaleCurvatureError`; the caller then factors anew.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from mlflow_relabel_audit.curvature.base import Curvature
from mlflow_relabel_audit.curvature.conjugate import ConjugateCurvature
from mlflow_relabel_audit.curvature.coupled import CoupledConjugate, CoupledCurvature
from mlflow_relabel_audit.curvature.dual import DualCurvature
from mlflow_relabel_audit.curvature.primal import PrimalCurvature
from mlflow_relabel_audit.curvature.separate import SeparateCurvature
from mlflow_relabel_audit.curvature.sparse import SparsePrimalCurvature
from mlflow_relabel_audit.curvature.stationary import StationaryPoint
from mlflow_relabel_audit.errors import StaleCurvatureError
from mlflow_relabel_audit.problem import FloatArray, Problem
from mlflow_relabel_audit.rows import Rows

FORMAT = 1
SIZE_LIMIT = 256 * 2**20
ARRAYS, FACTS = "hessian.npz", "hessian.json"


def save_hessian(point: StationaryPoint, directory: Path, fingerprint: str, *, limit: int = SIZE_LIMIT) -> list[Path]:
    """Write the minimiser and its curvature; returns the two paths.

    A factor above ``limit`` bytes is not stored: the file then holds the minimiser and the weights d, which is
    what conjugate gradients (or factoring again) need, and ``hessian.json`` says so.

    Parameters
    ----------
    point : StationaryPoint
    directory : Path
        an existing folder.
    fingerprint : str
        of the model, its data and the package version.
    limit : int
        bytes.
    """
    arrays: dict[str, FloatArray] = {"theta": point.theta}
    kind: str = point.curvature.kind
    order = point.curvature.order
    parts = 1 if order == point.curvature.p else point.outputs
    stored = kind == "cg" or 4 * parts * order * (order + 1) <= limit
    arrays |= point.curvature.arrays() if stored else {"diagonal": point.diagonal}
    path = directory / ARRAYS
    np.savez(path, **arrays)  # type: ignore[arg-type]
    facts = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "kind": kind,
        "factor_stored": stored,
        "condition": point.curvature.condition,
        "rows": len(point.diagonal) // point.outputs,
        "outputs": point.outputs,
        "coordinates": len(point.theta),
        "note": "packed lower triangle, row by row" if stored and kind != "cg" else "weights for products with H",
        "sha256": _digest(path),
    }
    described = directory / FACTS
    described.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return [path, described]


def load_hessian(
    directory: Path, fingerprint: str, problem: Problem, rows: Rows
) -> tuple[FloatArray, Curvature] | None:
    """Read a stored minimiser and curvature; None where the factor was too large to store.

    Raises
    ------
    StaleCurvatureError
        The files are damaged, or belong to another model, other data or another version.
    """
    try:
        facts = json.loads((directory / FACTS).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT or facts["fingerprint"] != fingerprint:
            raise StaleCurvatureError(
                f"stored Hessian: its fingerprint is {str(facts['fingerprint'])[:12]}, this audit's "
                f"{fingerprint[:12]}; it is computed again"
            )
        if _digest(directory / ARRAYS) != facts["sha256"]:
            raise StaleCurvatureError("stored Hessian: its checksum does not match; it is computed again")
        with np.load(directory / ARRAYS, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        theta = arrays["theta"]
        if theta.shape != (rows.p,) or facts["rows"] != rows.n:
            raise StaleCurvatureError(
                f"stored Hessian: got {facts['rows']} rows and {theta.shape} coordinates for {rows.n} and {rows.p}; "
                "it is computed again"
            )
        if not facts["factor_stored"]:
            return None
        return theta, _restore(facts, arrays, problem, rows)
    except (OSError, KeyError, ValueError, TypeError, EOFError, BadZipFile) as error:
        raise StaleCurvatureError(f"stored Hessian: unreadable ({error}); it is computed again") from error


def _restore(facts: dict[str, Any], arrays: dict[str, FloatArray], problem: Problem, rows: Rows) -> Curvature:
    kind, condition, penalty = facts["kind"], float(facts["condition"]), problem.penalty
    if problem.likelihood.coupled:
        if kind == "primal":
            return CoupledCurvature.restore(arrays["packed"], rows.p, condition)
        return CoupledConjugate(rows, arrays["diagonal"], penalty, condition)
    if rows.outputs > 1:
        single, parts = rows.of_one_output(), []
        for m, own in enumerate(penalty.reshape(rows.outputs, -1)):
            mine = {name.removeprefix(f"{m}_"): value for name, value in arrays.items() if name.startswith(f"{m}_")}
            parts.append(_restore_output(kind, condition, mine, own, single))
        return SeparateCurvature(parts)
    return _restore_output(kind, condition, arrays, penalty, rows)


def _restore_output(
    kind: str, condition: float, arrays: dict[str, FloatArray], penalty: FloatArray, rows: Rows
) -> Curvature:
    if kind == "primal" and "order" in arrays:
        return SparsePrimalCurvature.restore(arrays, condition)
    if kind == "primal":
        return PrimalCurvature.restore(arrays["packed"], rows.p, condition)
    if kind == "dual":
        return DualCurvature.restore(arrays["packed"], arrays["diagonal"], condition, rows, penalty)
    if kind == "cg":
        return ConjugateCurvature(rows, arrays["diagonal"], penalty, condition)
    raise StaleCurvatureError(f"stored Hessian: unknown form {kind!r}; it is computed again")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
