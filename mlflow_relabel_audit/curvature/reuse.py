"""The minimiser and its Hessian, from an earlier audit's files where they are this model's and this data's."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlflow_relabel_audit import __version__
from mlflow_relabel_audit.curvature.stationary import StationaryPoint, find_stationary_point
from mlflow_relabel_audit.curvature.storage import load_hessian
from mlflow_relabel_audit.errors import StaleCurvatureError
from mlflow_relabel_audit.problem import Problem
from mlflow_relabel_audit.rows import Rows

Stored = Path | Callable[[str], Path | None]
"""A folder with a stored Hessian, or what gives one for a fingerprint."""


def fingerprint(problem: Problem, rows: Rows) -> str:
    """SHA-256 of the model's coefficients and objective, the training rows, and the package version."""
    digest = hashlib.sha256(f"mlflow-relabel-audit {__version__}".encode())
    digest.update(
        repr((problem.classes, problem.class_weight, problem.likelihood, rows.intercept, rows.n, rows.p)).encode()
    )
    for part in (problem.theta, problem.penalty, rows.y, rows.base_weight):
        digest.update(np.ascontiguousarray(part).data)
    for block in rows.digests():
        digest.update(block)
    return digest.hexdigest()


def stationary_point(
    problem: Problem, rows: Rows, stored: Stored | None, kind: str | None = None
) -> tuple[StationaryPoint, bool]:
    """Find the minimiser and factor the Hessian, or take both from a store; tells which.

    A stored one that is damaged or another model's is warned of and computed again.

    Raises
    ------
    DataMismatchError, SingularHessianError
        See `find_stationary_point`.
    """
    expected = "" if stored is None else fingerprint(problem, rows)
    folder = stored(expected) if callable(stored) else stored
    if folder is not None:
        try:
            found = load_hessian(Path(folder), expected, problem, rows)
        except StaleCurvatureError as error:
            warnings.warn(str(error), UserWarning, stacklevel=4)
        else:
            if found is not None:
                point = find_stationary_point(problem, rows, start=found[0], curvature=found[1])
                return point, point.curvature is found[1]
    return find_stationary_point(problem, rows, kind=kind), False
