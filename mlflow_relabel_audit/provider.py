"""The training hook without a line of code: ``MLFLOW_RELABEL_AUDIT=1`` switches it on.

MLflow loads this module, an entry point of the group ``mlflow.run_context_provider``, whenever it is imported.
So nothing but the standard library is imported here, nothing is done unless the variable is set, and nothing
that goes wrong gets out: an exception would break ``import mlflow``.
"""

from __future__ import annotations

import os
from typing import Any

VARIABLE = "MLFLOW_RELABEL_AUDIT"


def switched_on() -> bool:
    """Whether the environment asks for the hook."""
    return os.environ.get(VARIABLE, "").strip().lower() in ("1", "true", "yes", "on")


class EnvironmentSwitch:
    """A run context provider, by MLflow's protocol, that adds no tags: it is there to be loaded."""

    def __init__(self) -> None:
        if switched_on():
            try:
                _wait_for_sklearn()
            except Exception:  # no hook is better than no MLflow
                return

    def in_context(self) -> bool:
        """Never: there are no tags to add."""
        return False

    def tags(self) -> dict[str, str]:
        """None."""
        return {}


def _wait_for_sklearn() -> None:
    """Put the hook in as soon as scikit-learn's linear models are imported, which may be now or never."""
    from mlflow.utils.import_hooks import register_post_import_hook

    register_post_import_hook(_install, "sklearn.linear_model", overwrite=True)


def _install(_: Any) -> None:
    try:
        from mlflow_relabel_audit.autolog import hook

        hook.install_early()
    except Exception:  # importing scikit-learn must not fail for it
        return
