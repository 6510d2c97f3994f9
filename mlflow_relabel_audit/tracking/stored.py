"""Read a stored audit back, going by its manifest alone.

A reader never sees half an audit. An audit that replaces another is complete in a staging folder before the
first of its files gets its usual name, so a manifest there of a higher generation means that the files under
the usual names may be mixed, and is the one to go by. A file counts only where its SHA-256 is the manifest's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflow_relabel_audit.tracking.manifest import NAME, Manifest
from mlflow_relabel_audit.tracking.store import FOLDER, Store

STAGING = "incoming"
HESSIAN = ("hessian.json", "hessian.npz")


def read_manifest(store: Store, run_id: str, directory: Path, below: str = "") -> Manifest | None:
    """The manifest of a run's audit; None where there is none.

    Parameters
    ----------
    below : str
        A staging folder below ``relabel_audit/``, by default the audit itself.
    """
    folder = directory / "manifest" / (below or "current")
    folder.mkdir(parents=True, exist_ok=True)
    file = store.fetch(run_id, "/".join(part for part in (FOLDER, below, NAME) if part), folder)
    return None if file is None else Manifest.from_json(file.read_text(encoding="utf-8"))


def read_artifact(store: Store, run_id: str, path: str, directory: Path) -> Path | None:
    """One file of the newest whole audit of a run, verified; None where there is none."""
    found = read_files(store, run_id, (path,), directory)
    return None if found is None else found[0]


def read_summary(store: Store, run_id: str, directory: Path) -> dict[str, Any] | None:
    """summary.json of the newest whole audit of a run."""
    file = read_artifact(store, run_id, "summary.json", directory)
    return None if file is None else json.loads(file.read_text(encoding="utf-8"))


def read_files(store: Store, run_id: str, paths: tuple[str, ...], directory: Path) -> tuple[Path, ...] | None:
    """Several files of one audit, the newest whole one that has them; None unless all are intact."""
    for below, manifest in _newest_first(store, run_id, directory):
        if not all(path in manifest.artifacts for path in paths):
            continue
        files = tuple(_verified(store, run_id, manifest, path, directory, below) for path in paths)
        if all(file is not None for file in files):
            return tuple(file for file in files if file is not None)
    return None


def fetch_hessian(store: Store, run_id: str, directory: Path) -> Path | None:
    """Folder with hessian.json and hessian.npz of the run's newest audit, intact, or None.

    Whether they belong to the model and data at hand is for their own fingerprint to tell.
    """
    files = read_files(store, run_id, HESSIAN, directory)
    return None if files is None else files[0].parent


def _newest_first(store: Store, run_id: str, directory: Path) -> list[tuple[str, Manifest]]:
    """The whole audits of a run with the folder each is in, ``""`` for the usual place."""
    names = store.files(run_id, f"{FOLDER}/{STAGING}")
    staged = [f"{STAGING}/{name.removesuffix('/' + NAME)}" for name in names if name.endswith("/" + NAME)]
    found = ((below, read_manifest(store, run_id, directory, below)) for below in ("", *sorted(staged)))
    known = [(below, manifest) for below, manifest in found if manifest is not None]
    return sorted(known, key=lambda item: -item[1].generation)  # stable: of equals the usual place


def _verified(store: Store, run_id: str, manifest: Manifest, path: str, directory: Path, below: str) -> Path | None:
    # A staged audit holds only what differs from the one it replaces; the rest is under its usual name.
    for place in (below, "") if below else ("",):
        target = directory / "stored" / (place or "current")
        target = target / Path(path).parent
        target.mkdir(parents=True, exist_ok=True)
        file = store.fetch(run_id, "/".join(part for part in (FOLDER, place, path) if part), target)
        if file is not None and manifest.matches(path, file):
            return file
    return None
