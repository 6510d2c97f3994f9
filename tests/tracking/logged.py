"""Runs and models for tests, logged as a user would log them."""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import pandas as pd

_random = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "a": _random.normal(size=60),
        "b": _random.normal(size=60),
        "label": _random.integers(0, 2, size=60),
    }
)


def log_models(
    *, example: Any = None, serialization_format: str | None = None, **models: Any
) -> tuple[str, dict[str, Any]]:
    """Log each model under its keyword in one run; returns the run's id and MLflow's ModelInfo by name.

    Without a serialization format MLflow's own default is taken.
    """
    stored = {} if serialization_format is None else {"serialization_format": serialization_format}
    example = FRAME[["a", "b"]] if example is None else example
    logged = {}
    with mlflow.start_run() as run:
        for name, model in models.items():
            signature = mlflow.models.infer_signature(example, model.predict(example).astype(float))
            logged[name] = mlflow.sklearn.log_model(
                model,
                name=name,
                signature=signature,
                pip_requirements=["scikit-learn"],  # not inferred: that takes seconds
                **stored,
            )
    return run.info.run_id, logged
