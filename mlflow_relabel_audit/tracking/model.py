"""Load the scikit-learn estimator of a logged model, as far as MLflow's own settings allow."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import sklearn
from mlflow import environment_variables
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from mlflow_relabel_audit.errors import RequestError, StoreError, UnsupportedModelError
from mlflow_relabel_audit.tracking.credentials import one_line
from mlflow_relabel_audit.tracking.resolve import ResolvedModel
from mlflow_relabel_audit.tracking.store import Store

_FORBIDS_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"


@dataclass(frozen=True)
class LoadedModel:
    """An estimator and what its MLmodel file says about it.

    Parameters
    ----------
    estimator : Any
        The fitted scikit-learn object.
    input_names : tuple of str or None
        Column names of the model's signature; None without one, or where it describes arrays.
    messages : tuple of str
        How it was stored and where versions differ.
    """

    estimator: Any
    input_names: tuple[str, ...] | None
    messages: tuple[str, ...]


def load_model(store: Store, resolved: ResolvedModel, directory: Path) -> LoadedModel:
    """Download and load the model.

    Loading a model can run code out of it. Whether that is allowed is MLflow's setting
    (``MLFLOW_ALLOW_PICKLE_DESERIALIZATION``), which is honoured and never changed here, also where MLflow is too old to
    know it.

    Raises
    ------
    UnsupportedModelError
        Not a scikit-learn model.
    RequestError
        MLflow's settings forbid loading it, or it cannot be loaded in this environment.
    """
    what = f"model {resolved.model_name!r}"
    folder = store.fetch_uri(resolved.location, directory, what)
    try:
        description = Model.load(str(folder))
    except Exception as error:
        raise StoreError(f"{what}: its MLmodel file cannot be read ({one_line(error)}); log the model again") from error
    flavor = description.flavors.get("sklearn")
    if flavor is None:
        kinds = ", ".join(sorted(set(description.flavors) - {"python_function"})) or "python_function"
        raise UnsupportedModelError(
            f"{what}: its flavor is {kinds}; this audit takes a scikit-learn model logged with mlflow.sklearn.log_model"
        )
    stored_as = str(flavor.get("serialization_format", "pickle"))
    messages = [f"model stored as {stored_as}"]
    trained_with = flavor.get("sklearn_version")
    if trained_with and trained_with != sklearn.__version__:
        messages.append(f"model trained with scikit-learn {trained_with}, audited with {sklearn.__version__}")
    unknown = _FORBIDS_PICKLE not in vars(environment_variables)
    if unknown and os.environ.get(_FORBIDS_PICKLE, "").lower() in ("false", "0"):
        raise RequestError(f"{what} (stored as {stored_as}): {_FORBIDS_PICKLE} forbids loading it")
    try:
        estimator = mlflow.sklearn.load_model(str(folder))
    except MlflowException as error:
        raise RequestError(f"{what} (stored as {stored_as}): MLflow does not load it ({one_line(error)})") from error
    except Exception as error:
        raise RequestError(
            f"{what} (stored as {stored_as}, scikit-learn {trained_with}): cannot be loaded here "
            f"({one_line(error)}); "
            "audit it in an environment like the one in its requirements.txt"
        ) from error
    return LoadedModel(estimator, _input_names(description), tuple(messages))


def _input_names(description: Model) -> tuple[str, ...] | None:
    signature = description.signature
    if signature is None or signature.inputs is None or not signature.inputs.has_input_names():
        return None
    return tuple(str(name) for name in signature.inputs.input_names())
