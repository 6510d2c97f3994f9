"""The same files on this machine: ``--output-dir``, for users who may read a run but not write to it."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow_relabel_audit.errors import RequestError, StoreError
from mlflow_relabel_audit.tracking.credentials import one_line
from mlflow_relabel_audit.tracking.manifest import NAME, Manifest, listing
from mlflow_relabel_audit.tracking.outputs import Artifact
from mlflow_relabel_audit.tracking.store import quiet


@contextmanager
def workspace() -> Iterator[Path]:
    """A folder for what is downloaded and what is about to be kept, gone at the end; MLflow is quiet meanwhile.

    Raises
    ------
    StoreError
        This machine's disk is full, or may not be written to.
    """
    try:
        with quiet(), tempfile.TemporaryDirectory(prefix="relabel-audit-") as folder:
            yield Path(folder)
    except OSError as error:  # what a store or a request raised has been named already
        raise StoreError(
            f"temporary folder {tempfile.gettempdir()}: cannot be written ({one_line(error)}); free some space there, "
            "or set TMPDIR to a folder on another disk, then run the same command again"
        ) from error


def check_directory(output_dir: Path) -> Path:
    """The absolute directory, if an audit may be written there: it is new, empty, or holds an earlier audit.

    Raises
    ------
    RequestError
        It is a file, or holds something else, which is not overwritten.
    """
    target = output_dir.expanduser().absolute()
    if target.exists() and not target.is_dir():
        raise RequestError(f"output directory {target}: is a file; pass a directory")
    if target.is_dir() and any(target.iterdir()) and not (target / NAME).is_file():
        raise RequestError(
            f"output directory {target}: holds files that are not an audit's; pass a new or empty directory"
        )
    return target


def unfinished(output_dir: Path) -> Path:
    """The folder beside an output directory where finished predictions are kept until all are done."""
    return output_dir.with_name(f".{output_dir.name}.unfinished")


def write_directory(artifacts: Iterable[Artifact], manifest: Manifest, output_dir: Path) -> Path:
    """Write an audit to a directory, whole or not at all; an earlier audit there is replaced.

    The files are completed beside the directory and put in its place by renaming.

    Raises
    ------
    RequestError
        The directory holds something else.
    StoreError
        The file system failed; an earlier audit is still there.
    """
    target = check_directory(output_dir)
    mark = uuid.uuid4().hex[:8]
    fresh, old = (target.with_name(f".{target.name}.{kind}-{mark}") for kind in ("new", "old"))
    try:
        fresh.mkdir(parents=True)
        for item in artifacts:
            place = fresh / item.path
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(item.file, place)
        (fresh / NAME).write_text(manifest.to_json(), encoding="utf-8")
        if target.exists():
            target.rename(old)
        try:
            fresh.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    except OSError as error:
        raise StoreError(
            f"output directory {target}: cannot be written ({one_line(error)}); free some space or pass another one"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
    return target


def add_file(artifact: Artifact, output_dir: Path) -> Path:
    """Put one more file, such as a contest's page, into a directory and its audit's manifest."""
    target = output_dir.expanduser().absolute()
    try:
        place = target / artifact.path
        place.parent.mkdir(parents=True, exist_ok=True)
        _replace(place, artifact.file.read_bytes())
        known = target / NAME
        manifest = Manifest.from_json(known.read_text(encoding="utf-8")) if known.is_file() else None
        if manifest is not None:
            entries = {**manifest.artifacts, **listing([artifact])}
            _replace(known, manifest.with_artifacts(entries).to_json().encode())
    except OSError as error:
        raise StoreError(
            f"output directory {target}: cannot be written ({one_line(error)}); pass another one"
        ) from error
    return place


def _replace(place: Path, content: bytes) -> None:
    fresh = place.with_name(f".{place.name}.new")
    fresh.write_bytes(content)
    fresh.replace(place)
