"""Tells how many training labels, and which, would have to be different for a prediction to flip.

An audit of scikit-learn logistic regressions, alone on arrays (`Auditor`) or on a model logged to MLflow
(`audit`, and the command ``mlflow-relabel``).
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_relabel_audit.audit import AuditResult, audit
    from mlflow_relabel_audit.auditor import Auditor
    from mlflow_relabel_audit.autolog import autolog
    from mlflow_relabel_audit.errors import (
        DataMismatchError,
        RelabelAuditError,
        RequestError,
        StoreError,
        UnsupportedModelError,
    )

__version__ = "0.1.0"

__all__ = [
    "AuditResult",
    "Auditor",
    "DataMismatchError",
    "RelabelAuditError",
    "RequestError",
    "StoreError",
    "UnsupportedModelError",
    "audit",
    "autolog",
]

# Where each public name lives. They are imported when first asked for, so that `import mlflow_relabel_audit`
# costs nothing and `Auditor` works where MLflow is never imported.
_HOMES = {
    "AuditResult": "audit",
    "Auditor": "auditor",
    "DataMismatchError": "errors",
    "RelabelAuditError": "errors",
    "RequestError": "errors",
    "StoreError": "errors",
    "UnsupportedModelError": "errors",
    "audit": "audit",
    "autolog": "autolog",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps a public function's name from being taken by the submodule of the same name.

    Importing ``mlflow_relabel_audit.audit`` would otherwise bind the module over the function `audit`, and
    ``from mlflow_relabel_audit import audit`` would mean one or the other by the order of imports.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
