"""A tracking server seen through explicit ids, with its failures turned into this package's errors."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_relabel_audit.errors import RelabelAuditError, RequestError, StoreError
from mlflow_relabel_audit.tracking.credentials import one_line, redact

FOLDER = "relabel_audit"
"""Artifact folder of a run that every file of an audit is under."""

_QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}


class PermissionDeniedError(StoreError):
    """The server lets this user read, but not write."""


@dataclass(frozen=True)
class Store:
    """One tracking server or database.

    Parameters
    ----------
    tracking_uri : str
        As MLflow understands it; may hold credentials, so messages use `shown_uri`.
    client : MlflowClient
    """

    tracking_uri: str = field(repr=False)
    client: MlflowClient = field(repr=False)
    _repositories: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def connect(cls, tracking_uri: str | None = None) -> Store:
        """The store at ``tracking_uri``, by default where MLflow itself would log."""
        uri = tracking_uri or mlflow.get_tracking_uri()
        with failures(f"tracking URI {redact(uri)}"):
            return cls(uri, MlflowClient(tracking_uri=uri))

    @property
    def shown_uri(self) -> str:
        """The tracking URI without credentials."""
        return redact(self.tracking_uri)

    def run(self, run_id: str) -> Run:
        """The run, which must exist and not be deleted.

        Raises
        ------
        RequestError
            Unknown or deleted.
        StoreError
            The server failed.
        """
        missing = (
            f"run {run_id!r}: not found at {self.shown_uri}; check the id, and that --tracking-uri or "
            "MLFLOW_TRACKING_URI names the server that holds it"
        )
        with failures(f"run {run_id}", missing=missing):
            run = self.client.get_run(run_id)
        if run.info.lifecycle_stage == "deleted":
            raise RequestError(
                f"run {run_id}: it is deleted; restore it first (mlflow runs restore --run-id {run_id}) "
                "or audit another run"
            )
        return run

    def files(self, run_id: str, folder: str = FOLDER) -> dict[str, int]:
        """Sizes in bytes of a run's artifacts under ``folder``, by path below it, folders walked."""
        found: dict[str, int] = {}
        pending = [folder]
        with failures(f"artifacts of run {run_id}"):
            while pending:
                for info in self._repository(run_id).list_artifacts(pending.pop()):
                    if info.is_dir:
                        pending.append(info.path)
                    else:
                        found[info.path[len(folder) + 1 :]] = int(info.file_size or 0)
        return found

    def fetch(self, run_id: str, path: str, directory: Path) -> Path | None:
        """Download one artifact of a run; None where there is none.

        Raises
        ------
        StoreError
            The store failed, which never passes for an artifact that is not there.
        """
        with failures(f"artifact {path} of run {run_id}"):
            return self._download(run_id, path, directory)

    def fetch_uri(self, uri: str, directory: Path, what: str) -> Path:
        """Download what MLflow can download: ``runs:/``, ``models:/``, ``mlflow-artifacts:/``, ``s3://``..."""
        missing = f"{what} {redact(uri)}: there is no such artifact; check the path and the tracking URI"
        with failures(f"{what} {redact(uri)}", missing=missing):
            if match := re.fullmatch(r"runs:/+([^/]+)/(.+)", uri):
                found = self._download(match[1], match[2].strip("/"), directory)
                if found is not None:
                    return found
            return Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=uri, dst_path=str(directory), tracking_uri=self.tracking_uri
                )
            )

    def discard(self, run: Run, path: str) -> bool:
        """Try to delete an artifact or folder; some stores refuse, which is not an error."""
        try:
            self._repository(run.info.run_id).delete_artifacts(path)
        except Exception:  # tidying only: every reader goes by the manifest
            return False
        return True

    def _download(self, run_id: str, path: str, directory: Path) -> Path | None:
        # MLflow's own download by run id takes whatever goes wrong for an artifact that is not there; so the folder
        # is listed first, which fails as what it is.
        repository = self._repository(run_id)
        if all(info.path != path for info in repository.list_artifacts(posixpath.dirname(path) or None)):
            return None
        directory.mkdir(parents=True, exist_ok=True)
        return Path(repository.download_artifacts(path, str(directory)))

    def _repository(self, run_id: str) -> Any:
        """MLflow's access to the artifacts of a run."""
        if run_id not in self._repositories:
            uri = self.client.get_run(run_id).info.artifact_uri
            self._repositories[run_id] = get_artifact_repository(uri, tracking_uri=self.tracking_uri)
        return self._repositories[run_id]


@contextmanager
def failures(what: str, *, missing: str | None = None) -> Iterator[None]:
    """Turn what a store raises inside the block into one line that says what to do.

    Parameters
    ----------
    what : str
        The thing being read or written; starts the message.
    missing : str, optional
        The whole message of the `RequestError` for something that does not exist.
    """
    try:
        yield
    except RelabelAuditError:
        raise
    except Exception as error:
        raise _translated(error, what, missing) from error


def _translated(error: Exception, what: str, missing: str | None) -> RelabelAuditError:
    status = _status(error)
    if isinstance(error, ImportError):
        return RequestError(f"{what}: needs the package {error.name!r}; install it with pip and run again")
    if missing is not None and (
        isinstance(error, FileNotFoundError)
        or status == 404
        or getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
    ):
        return RequestError(missing)
    got = _reason(error)
    if status == 401:
        return StoreError(
            f"{what}: the server wants a login; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
            "(or MLFLOW_TRACKING_TOKEN)"
        )
    if status == 403:
        return PermissionDeniedError(
            f"{what}: permission denied; ask for EDIT rights on the experiment, or keep the audit on this "
            "machine with --output-dir DIR --no-log"
        )
    if isinstance(error, MlflowException) and "IntegrityError" in got:  # which MLflow passes for a bad request
        return StoreError(f"{what}: another client wrote the same at the same time; run the same command again")
    if isinstance(error, MlflowException) and status == 400:
        return RequestError(f"{what}: MLflow refused it ({got}); correct the request")
    return StoreError(
        f"{what}: the store failed ({got}); check the server and its disk, then run the same command again"
    )


def _reason(error: BaseException) -> str:
    """The cause in few words: MLflow wraps a refused connection in half a page."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, (requests.exceptions.RetryError, requests.exceptions.ConnectionError)):
            text = str(link)
            if code := re.search(r"too many (\d{3}) error responses", text):
                return f"it answered with HTTP {code[1]} again and again"
            if cause := re.search(r"\[Errno -?\d+\] ([A-Z][a-z ]+)", text):
                return f"no connection: {cause[1].strip()}"
            if "timed out" in text:
                return "no answer in time"
            return "the connection broke"
        if isinstance(link, requests.exceptions.Timeout):
            return "no answer in time"
        link = link.__cause__ or link.__context__
    return one_line(error)


def _status(error: Any) -> int | None:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return int(error.response.status_code)
    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Run MLflow without progress bars, giving up on a dead server in seconds, unless set otherwise."""
    added = {name: value for name, value in {**_QUIET, **_PATIENCE}.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
