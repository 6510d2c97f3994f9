"""The Hessian of the training objective at the fitted coefficients, factored once.

``H = X' diag(d) X + R`` with ``d_i = s_i sigma(z_i) (1 - sigma(z_i))``. Three forms answer the same questions:
`PrimalCurvature` (Cholesky, p x p), `DualCurvature` (Cholesky, n x n, for p > n) and `ConjugateCurvature`
(preconditioned conjugate gradients, for sparse rows where both are large). `factor` picks the cheapest. Of many sparse
columns `SparsePrimalCurvature` eliminates those that never meet before it factors the rest.
"""

from mlflow_relabel_audit.curvature.base import Curvature
from mlflow_relabel_audit.curvature.choose import choose_kind, factor
from mlflow_relabel_audit.curvature.conjugate import ConjugateCurvature
from mlflow_relabel_audit.curvature.dual import DualCurvature
from mlflow_relabel_audit.curvature.primal import PrimalCurvature
from mlflow_relabel_audit.curvature.sparse import SparsePrimalCurvature
from mlflow_relabel_audit.curvature.stationary import Stationarity, StationaryPoint, find_stationary_point
from mlflow_relabel_audit.curvature.storage import load_hessian, save_hessian

__all__ = [
    "ConjugateCurvature",
    "Curvature",
    "DualCurvature",
    "PrimalCurvature",
    "SparsePrimalCurvature",
    "Stationarity",
    "StationaryPoint",
    "choose_kind",
    "factor",
    "find_stationary_point",
    "load_hessian",
    "save_hessian",
]
