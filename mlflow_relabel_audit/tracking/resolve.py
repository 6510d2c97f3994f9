"""From a run id or a model URI to one logged model, its run, and where its files are."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion

from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.tracking.credentials import redact
from mlflow_relabel_audit.tracking.store import Store, failures

_URI_FORMS = "models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID or runs:/RUN_ID/NAME"


@dataclass(frozen=True)
class ResolvedModel:
    """One model to audit.

    Parameters
    ----------
    run : mlflow.entities.Run or None
        The run that logged it, active; None for a model logged outside a run.
    model_id : str or None
        Id of the LoggedModel; None for a model logged by MLflow 2.
    model_uri : str
        The URI that was asked for, or ``models:/m-ID``.
    model_name : str
        The name it was logged under.
    location : str
        Artifact URI of its files.
    registered_name, version, alias : str or None
        Where the request went through the registry.
    """

    run: Run | None
    model_id: str | None
    model_uri: str
    model_name: str
    location: str
    registered_name: str | None = None
    version: str | None = None
    alias: str | None = None

    @property
    def run_id(self) -> str | None:
        """Id of the run that logged the model."""
        return None if self.run is None else str(self.run.info.run_id)

    @property
    def experiment_id(self) -> str | None:
        """Id of the experiment that holds the run."""
        return None if self.run is None else str(self.run.info.experiment_id)


def resolve(
    store: Store,
    *,
    run_id: str | None = None,
    model_uri: str | None = None,
    model_name: str | None = None,
) -> ResolvedModel:
    """Find the one model that a run id or a model URI names.

    Raises
    ------
    RequestError
        Nothing, or more than one thing, is named; the run is unknown, deleted or holds no model.
    StoreError
        The server failed.
    """
    if model_uri and run_id:
        found = _from_uri(store, model_uri)
        if found.run_id != run_id:
            raise RequestError(
                f"model URI {redact(model_uri)} belongs to run {found.run_id}, not to run {run_id}; pass one of the two"
            )
        return found
    if model_uri:
        return _from_uri(store, model_uri)
    if run_id:
        return _from_run(store, store.run(run_id), model_name)
    raise RequestError("no model named; pass --run-id ID or --model-uri URI")


def _from_uri(store: Store, uri: str) -> ResolvedModel:
    if match := re.fullmatch(r"runs:/+([^/]+)/(.+)", uri):
        return _from_run(store, store.run(match[1]), match[2].strip("/"), uri)
    if match := re.fullmatch(r"models:/+(m-[0-9a-zA-Z]+)/?", uri):
        return _from_logged(store, _logged(store, match[1]), uri)
    if match := re.fullmatch(r"models:/+([^@]+?)(?:/([^/@]+)|@([^/@]+))", uri):
        return _from_registry(store, match[1], match[2], match[3], uri)
    raise RequestError(f"model URI {redact(uri)!r}: not a form this reads; pass {_URI_FORMS}")


def _from_registry(store: Store, name: str, version: str | None, alias: str | None, uri: str) -> ResolvedModel:
    what = f"registered model {redact(uri)}"
    missing = f"{what}: there is none at {store.shown_uri}; check the name and the version or alias"
    with failures(what, missing=missing):
        found: ModelVersion | None
        if alias is not None:
            found = store.client.get_model_version_by_alias(name, alias)
        elif version == "latest":
            found = max(
                store.client.search_model_versions(f"name='{name}'"),
                key=lambda item: int(item.version),
                default=None,
            )
        else:
            found = store.client.get_model_version(name, str(version))
    if found is None:
        raise RequestError(missing)
    names = {"registered_name": name, "version": str(found.version), "alias": alias}
    source = str(found.source)
    # The entity's model_id is not filled for an alias, its source always is.
    if match := re.fullmatch(r"models:/+(m-[0-9a-zA-Z]+)/?", source):
        return _from_logged(store, _logged(store, match[1]), uri, **names)
    with failures(what, missing=missing):
        location = store.client.get_model_version_download_uri(name, str(found.version))
    run = store.run(found.run_id) if found.run_id else None
    return ResolvedModel(run, None, uri, source.rstrip("/").rpartition("/")[2], location, **names)


def _logged(store: Store, model_id: str) -> LoggedModel:
    missing = f"logged model {model_id}: not found at {store.shown_uri}; check the id and the tracking URI"
    with failures(f"logged model {model_id}", missing=missing):
        return store.client.get_logged_model(model_id)


def _from_logged(store: Store, model: LoggedModel, uri: str | None = None, **names: Any) -> ResolvedModel:
    status = str(getattr(model.status, "name", model.status))
    if status == "FAILED":
        raise RequestError(f"logged model {model.model_id} ({model.name}): its logging failed; log it again")
    run = store.run(model.source_run_id) if model.source_run_id else None
    return ResolvedModel(
        run,
        str(model.model_id),
        uri or str(model.model_uri),
        str(model.name),
        str(model.artifact_location),
        **names,
    )


def _from_run(store: Store, run: Run, name: str | None, uri: str | None = None) -> ResolvedModel:
    outputs = run.outputs.model_outputs if run.outputs is not None else []
    ids = dict.fromkeys(output.model_id for output in outputs)  # one model may be an output of several steps
    # in a fixed order: a run lists its outputs in any
    models = sorted((_logged(store, model_id) for model_id in ids), key=lambda model: (model.name, model.model_id))
    if not models:
        return _from_legacy_run(run, name, uri)
    listed = ", ".join(f"{model.name} ({model.model_id})" for model in models)
    if name is not None:
        models = [model for model in models if name in (model.name, model.model_id)]
        if not models:
            raise RequestError(f"run {run.info.run_id}: has no model named {name!r}; it has {listed}")
    if len(models) > 1:
        raise RequestError(
            f"run {run.info.run_id}: has {len(models)} models; say which with --model-name NAME (or the id): {listed}"
        )
    return _from_logged(store, models[0], uri)


def _from_legacy_run(run: Run, name: str | None, uri: str | None) -> ResolvedModel:
    """Models that MLflow 2 logged live among the run's artifacts and are listed in a tag."""
    run_id = run.info.run_id
    history = json.loads(run.data.tags.get("mlflow.log-model.history", "[]"))
    paths = list(dict.fromkeys(entry["artifact_path"] for entry in history))
    if name is not None and name in paths:
        paths = [name]
    if not paths:
        raise RequestError(
            f"run {run_id}: holds no logged model; log one with mlflow.sklearn.log_model(estimator, "
            "name='model'), "
            "or pass --model-uri"
        )
    if len(paths) > 1 or (name is not None and name not in paths):
        raise RequestError(f"run {run_id}: say which of its models with --model-name NAME: {', '.join(paths)}")
    location = f"{str(run.info.artifact_uri).rstrip('/')}/{paths[0]}"
    return ResolvedModel(run, None, uri or f"runs:/{run_id}/{paths[0]}", paths[0], location)
