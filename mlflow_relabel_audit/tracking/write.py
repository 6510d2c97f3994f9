"""The one writer: puts what the stages yielded into a run, so that it always holds a whole audit.

A run's artifacts cannot be replaced all at once, so they are replaced the way a database replaces pages:

1. ``begin`` marks the run: status ``running`` and this execution's audit id (the run's own status and end
   time stay as they are). A later ``begin`` takes the mark over, and then only its owner may publish.
2. Where an earlier audit is there, the new files go to ``relabel_audit/incoming/AUDIT_ID/``, their manifest
   last. A fault up to here leaves the earlier audit untouched.
3. The files go to their usual names, manifest.json last. A fault in between leaves the new audit whole in
   ``incoming/``, where `stored` finds it by its higher generation.
4. The files are listed and compared; ``incoming/`` and files that are no longer part are deleted.
5. Metrics, description and tags in one request, with status ``complete``; the verdict tag last of all.

A first audit has nothing to protect and skips step 2: without a manifest there is no audit.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlflow.entities import Metric as RunMetric
from mlflow.entities import Run, RunTag

from mlflow_relabel_audit.errors import RequestError, StoreError
from mlflow_relabel_audit.tracking import note
from mlflow_relabel_audit.tracking.credentials import one_line, redact
from mlflow_relabel_audit.tracking.manifest import NAME, Manifest, listing
from mlflow_relabel_audit.tracking.outputs import Artifact, Metric, Note, Output, Tag
from mlflow_relabel_audit.tracking.resolve import ResolvedModel
from mlflow_relabel_audit.tracking.store import FOLDER, PermissionDeniedError, Store, failures
from mlflow_relabel_audit.tracking.stored import STAGING, read_manifest

STATUS, ERROR, VERDICT, AUDIT_ID = (f"{FOLDER}.{name}" for name in ("status", "error", "verdict", "audit_id"))


@dataclass(frozen=True)
class Claim:
    """The right to publish an audit of one run, until a later audit of it begins.

    ``leftovers``: a fault left a staged audit, so the files under their usual names may be mixed.
    """

    run: Run
    model_id: str | None
    audit_id: str
    previous: Manifest | None = field(repr=False)
    leftovers: bool = False

    @property
    def run_id(self) -> str:
        """Id of the audited run."""
        return str(self.run.info.run_id)


def begin(store: Store, resolved: ResolvedModel) -> Claim:
    """Mark the run as being audited.

    Raises
    ------
    PermissionDeniedError
        This user may not write to the run.
    StoreError
        The server failed.
    """
    if resolved.run is None:
        raise StoreError(
            f"model {resolved.model_uri}: was logged outside a run, so there is none to log to; "
            "keep the audit on this machine with --output-dir DIR --no-log"
        )
    audit_id = uuid.uuid4().hex
    run = store.run(str(resolved.run_id))
    with tempfile.TemporaryDirectory() as folder:
        previous = read_manifest(store, str(resolved.run_id), Path(folder))
    leftovers = bool(store.files(str(resolved.run_id), f"{FOLDER}/{STAGING}"))
    with failures(f"run {resolved.run_id}"):
        store.client.log_batch(
            str(resolved.run_id),
            tags=[RunTag(STATUS, "running"), RunTag(AUDIT_ID, audit_id)],
            synchronous=True,
        )
    return Claim(run, resolved.model_id, audit_id, previous, leftovers)


def begin_unless_refused(store: Store, resolved: ResolvedModel, *, local: bool) -> tuple[Claim | None, str | None]:
    """`begin`, or why not: a user who may only read is served by a local directory, where there is one."""
    try:
        return begin(store, resolved), None
    except PermissionDeniedError as error:
        if not local:
            raise
        return None, f"not logged to the run: {error}"


def abandon(store: Store, claim: Claim, error: BaseException) -> None:
    """Mark the audit as failed, with one line of why, unless another audit has taken over; never raises.

    A request that turns out to be wrong is no failed audit: the run gets the marks back that it had.
    """
    try:
        if _owner(store, claim) != claim.audit_id:
            return
        if isinstance(error, RequestError):
            for key in (AUDIT_ID, STATUS):
                if key in claim.run.data.tags:
                    store.client.set_tag(claim.run_id, key, claim.run.data.tags[key])
                else:
                    store.client.delete_tag(claim.run_id, key)
            return
        tags = [RunTag(STATUS, "failed"), RunTag(ERROR, one_line(error) or type(error).__name__)]
        store.client.log_batch(claim.run_id, tags=tags, synchronous=True)
    except Exception:  # the error that led here is the one to report
        return


def publish(
    store: Store,
    claim: Claim,
    outputs: Sequence[Output],
    *,
    manifest: Manifest,
    dataset: tuple[str, str] | None = None,
    present: Iterable[str] = (),
) -> None:
    """Replace the run's audit by this one.

    Parameters
    ----------
    manifest : Manifest
        Lists the artifacts among ``outputs``, and those kept from the earlier audit.
    dataset : tuple of str, optional
        Name and digest of the evaluated MLflow dataset, to link the metrics to.
    present : iterable of str
        Artifacts that were read from the earlier audit; the same there, they need no upload (the Hessian).

    Raises
    ------
    StoreError
        The store failed, or another audit of this run began meanwhile; the run holds a whole audit.
    """
    spared = {path for path in present if _unchanged(claim, manifest, path)}
    artifacts = [item for item in outputs if isinstance(item, Artifact) and item.path not in spared]
    staged = f"{FOLDER}/{STAGING}/{claim.audit_id}"
    if claim.previous is not None:
        manifest = replace(manifest, generation=claim.previous.generation + 1)
    with tempfile.TemporaryDirectory(prefix="relabel-audit-") as folder:
        parcel = _pack(artifacts, Path(folder) / "files")
        listed = Path(folder) / NAME
        listed.write_text(manifest.to_json(), encoding="utf-8")
        if claim.previous is not None:
            with failures(f"staging the audit in run {claim.run_id} (the earlier audit is untouched)"):
                store.client.log_artifacts(claim.run_id, str(parcel), staged)
                store.client.log_artifact(claim.run_id, str(listed), staged)
        _require_ownership(store, claim)
        _replace(store, claim, parcel, listed, manifest, artifacts)
    _tidy(store, claim, manifest)
    _log_values(store, claim, outputs, dataset)


def _unchanged(claim: Claim, manifest: Manifest, path: str) -> bool:
    if claim.previous is None or claim.leftovers:
        return False
    return manifest.artifacts[path] == claim.previous.artifacts.get(path)


def add_artifact(store: Store, resolved: ResolvedModel, artifact: Artifact, manifest: Manifest) -> None:
    """Add one file, such as a contest's page, to a run and to the manifest of its audit."""
    run_id = str(resolved.run_id)
    with tempfile.TemporaryDirectory(prefix="relabel-audit-") as folder:
        parcel = _pack([artifact], Path(folder) / "files")
        current = read_manifest(store, run_id, Path(folder)) or manifest
        listed = Path(folder) / NAME
        listed.write_text(
            current.with_artifacts({**current.artifacts, **listing([artifact])}).to_json(), encoding="utf-8"
        )
        with failures(f"writing {artifact.path} to run {run_id}"):
            store.client.log_artifacts(run_id, str(parcel), FOLDER)
            store.client.log_artifact(run_id, str(listed), FOLDER)


def _pack(artifacts: Iterable[Artifact], folder: Path) -> Path:
    """The files in one tree, linked where the file system allows, so that one call uploads them."""
    folder.mkdir()
    for item in artifacts:
        place = folder / item.path
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.hardlink_to(item.file)
        except OSError:
            shutil.copyfile(item.file, place)
    return folder


def _replace(
    store: Store, claim: Claim, parcel: Path, listed: Path, manifest: Manifest, artifacts: Sequence[Artifact]
) -> None:
    state = "no audit is there yet"
    if claim.previous is not None:
        state = f"the new audit is whole in {FOLDER}/{STAGING}/{claim.audit_id}"
    try:
        with failures(f"writing the audit to run {claim.run_id} ({state})"):
            store.client.log_artifacts(claim.run_id, str(parcel), FOLDER)
            store.client.log_artifact(claim.run_id, str(listed), FOLDER)
        sizes = store.files(claim.run_id)
        wrong = [path for path, entry in manifest.artifacts.items() if sizes.get(path) != entry["bytes"]]
        if wrong:
            raise StoreError(
                f"run {claim.run_id}: {wrong[0]} is not what was just written; another audit of this "
                "run, or another "
                f"program, wrote there too; run this command again"
            )
    except StoreError:
        if claim.previous is None:  # without a manifest these are no audit: leave nothing behind
            for item in artifacts:
                store.discard(claim.run, f"{FOLDER}/{item.path}")
        raise


def _require_ownership(store: Store, claim: Claim) -> None:
    if _owner(store, claim) != claim.audit_id:
        store.discard(claim.run, f"{FOLDER}/{STAGING}/{claim.audit_id}")
        raise StoreError(
            f"run {claim.run_id}: another audit of it began after this one, and its result stands; "
            "wait for it, or run this command again"
        )


def _owner(store: Store, claim: Claim) -> str | None:
    with failures(f"run {claim.run_id}"):
        return store.client.get_run(claim.run_id).data.tags.get(AUDIT_ID)


def _tidy(store: Store, claim: Claim, manifest: Manifest) -> None:
    """Delete the staging folder and the earlier audit's files that are no longer part; best effort."""
    if claim.previous is None:
        return
    for path in set(claim.previous.artifacts) - set(manifest.artifacts):
        store.discard(claim.run, f"{FOLDER}/{path}")
    # Staged audits that are older than this one were left by faults; a newer one would have taken the claim.
    store.discard(claim.run, f"{FOLDER}/{STAGING}")


def _log_values(store: Store, claim: Claim, outputs: Sequence[Output], dataset: tuple[str, str] | None) -> None:
    now = int(time.time() * 1000)
    name, digest = dataset or (None, None)
    metrics = [
        RunMetric(
            f"{FOLDER}/{item.name}",
            float(item.value),
            now,
            0,
            model_id=claim.model_id,
            dataset_name=name,
            dataset_digest=digest,
            run_id=claim.run_id,
        )
        for item in outputs
        if isinstance(item, Metric) and math.isfinite(item.value)
    ]
    tags = {f"{FOLDER}.{item.name}": redact(item.value) for item in outputs if isinstance(item, Tag)}
    verdict = tags.pop(VERDICT, None)
    block = next((item.text for item in outputs if isinstance(item, Note)), None)
    with failures(f"logging the metrics of run {claim.run_id} (its artifacts are complete)"):
        run = store.client.get_run(claim.run_id)
        if block is not None:
            text = note.merge(run.data.tags.get(note.KEY, ""), redact(block))
            if text is not None:
                tags[note.KEY] = text
        known = _known_values(store, claim, run)
        fresh = [item for item in metrics if known.get((item.key, name)) != item.value]
        written = [RunTag(key, value) for key, value in {**tags, STATUS: "complete"}.items()]
        store.client.log_batch(claim.run_id, metrics=fresh, tags=written, synchronous=True)
        if ERROR in run.data.tags:
            store.client.delete_tag(claim.run_id, ERROR)
        if verdict is not None:
            if claim.model_id is not None:
                store.client.set_logged_model_tags(claim.model_id, {VERDICT: verdict})
            store.client.set_tag(claim.run_id, VERDICT, verdict)


def _known_values(store: Store, claim: Claim, run: Run) -> dict[tuple[str, str | None], float]:
    """Latest values already logged, so that a rerun with the same result adds no second point."""
    if claim.model_id is None:
        return {(key, None): value for key, value in run.data.metrics.items()}
    logged = store.client.get_logged_model(claim.model_id).metrics or []
    ordered = sorted((item for item in logged if item.run_id == claim.run_id), key=lambda item: item.timestamp)
    return {(item.key, item.dataset_name): item.value for item in ordered}
