"""Stored audits of several runs beside each other: read, match rows, report, write."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

from mlflow_relabel_audit import __version__, reports, tracking
from mlflow_relabel_audit.analyses.compare import CompareResult, compare
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.reports import ReportContext
from mlflow_relabel_audit.tracking import Manifest, ResolvedModel, Store
from mlflow_relabel_audit.tracking.stored import read_files

_PAGE = "compare.html"
_FILES = ("predictions.parquet", "summary.json")


@dataclass(frozen=True)
class StoredAudit:
    """The audit a run holds, as read back.

    Attributes
    ----------
    resolved : ResolvedModel
        the run and its audited model.
    name : str
        what to call it: the run's name.
    predictions : DataFrame
        predictions.parquet.
    summary : dict
        summary.json: metrics, and what was audited.
    """

    resolved: ResolvedModel
    name: str
    predictions: pd.DataFrame = field(repr=False)
    summary: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class ComparisonOutcome:
    """Compared runs and where the page is kept.

    Attributes
    ----------
    names : dict
        run id to the name used in the result.
    result : CompareResult
    tracking_uri : str
        without credentials.
    messages : tuple of str
        what speaks against taking the rows as the same, and what was not logged.
    report_location : str
        where to look at the page.
    logged : bool
        whether it was written to the first run.
    """

    names: dict[str, str]
    result: CompareResult
    tracking_uri: str
    messages: tuple[str, ...]
    report_location: str
    logged: bool


def compare_runs(
    run_ids: Sequence[str],
    *,
    output_dir: str | Path | None = None,
    log: bool = True,
    tracking_uri: str | None = None,
) -> ComparisonOutcome:
    """Compare the audits stored with two or more runs, on the evaluation rows they share.

    Nothing is computed anew: each run must hold a whole audit. The page goes to the first run, as
    ``relabel_audit/compare/...html``, and goes with its audit: the next audit of that run removes it.

    Parameters
    ----------
    run_ids : sequence of str
        At least two different runs.
    output_dir : path, optional
        Also write ``compare.html`` there.
    log : bool
        Write the page to the first run.
    tracking_uri : str, optional
        By default MLflow's own.

    Raises
    ------
    RequestError
        Too few runs, one without an audit, or no shared rows; nothing was written.
    StoreError
        A server or file system failed.
    """
    ids = list(run_ids)
    if len(ids) < 2:
        raise RequestError(f"compare: got {len(ids)} run(s); pass at least two audited runs")
    if twice := [run_id for run_id, count in Counter(ids).items() if count > 1]:
        raise RequestError(f"compare: run {twice[0]} is named twice; pass different runs")
    target = None if output_dir is None else Path(output_dir).expanduser().absolute()
    with tracking.workspace() as folder:
        store = Store.connect(tracking_uri)
        audits = _named([read_audit(store, run_id, folder / str(at)) for at, run_id in enumerate(ids)])
        result = compare({each.name: (each.predictions, each.summary["metrics"]) for each in audits})
        messages = _doubts(audits)
        first = audits[0].resolved
        page = reports.render_compare(result, _context(store, audits, len(result.shared), messages))
        # The others' ids name the page, so that comparing again replaces it.
        path = f"compare/{tracking.file_name('-'.join(run_id[:12] for run_id in ids[1:]))}.html"
        artifact = tracking.text_file(folder, path, page)
        logged = False
        if target is not None:
            tracking.add_file(tracking.Artifact(_PAGE, artifact.file), target)
        if log:
            try:
                tracking.add_artifact(store, first, artifact, _manifest())
                logged = True
            except tracking.PermissionDeniedError as error:
                if target is None:
                    raise
                messages = (*messages, f"not logged to the run: {error}")
        return ComparisonOutcome(
            names={str(each.resolved.run_id): each.name for each in audits},
            result=result,
            tracking_uri=store.shown_uri,
            messages=messages,
            report_location=tracking.location(
                store, first, path if logged else _PAGE, output_dir=target, logged=logged
            ),
            logged=logged,
        )


def read_audit(store: Store, run_id: str, folder: Path) -> StoredAudit:
    """The predictions and figures of a run's newest whole audit, verified by its manifest.

    Raises
    ------
    RequestError
        The run is unknown, or holds no audit, or a damaged one.
    """
    run = store.run(run_id)
    files = read_files(store, run_id, _FILES, folder)
    if files is None:
        raise RequestError(
            f"run {run_id}: holds no whole audit; audit it with mlflow-relabel audit --run-id {run_id} "
            "--train-data FILE --target COLUMN --eval-data FILE"
        )
    predictions, summary = pd.read_parquet(files[0]), json.loads(files[1].read_text(encoding="utf-8"))
    uri = str(summary["model_uri"])
    resolved = ResolvedModel(run, summary["model_id"], uri, uri.rpartition("/")[2], "")
    return StoredAudit(resolved, str(run.info.run_name or run_id), predictions, summary)


def _named(audits: Sequence[StoredAudit]) -> list[StoredAudit]:
    """Names that tell the runs apart: of those that share one, the run ids too."""
    shared = Counter(each.name for each in audits)
    return [
        each if shared[each.name] == 1 else replace(each, name=f"{each.name} ({str(each.resolved.run_id)[:12]})")
        for each in audits
    ]


def _doubts(audits: Sequence[StoredAudit]) -> tuple[str, ...]:
    """What a reader must know before taking rows of the same id for the same row."""
    said = []
    sources = {each.name: each.summary["eval_source"] for each in audits}
    if len(set(sources.values())) > 1:
        listed = "; ".join(f"{name}: {source}" for name, source in sources.items())
        said.append(f"rows are matched by id, and the audits name different evaluation data ({listed})")
    thresholds = {each.name: each.summary["threshold"] for each in audits}
    if len(set(thresholds.values())) > 1:
        listed = "; ".join(f"{name}: {threshold:g}" for name, threshold in thresholds.items())
        said.append(f"the audits were made at different thresholds ({listed})")
    return tuple(said)


def _context(store: Store, audits: Sequence[StoredAudit], shared: int, messages: tuple[str, ...]) -> ReportContext:
    first = audits[0]
    classes = tuple(first.summary.get("classes", ()))
    if not classes:  # of an audit by an earlier version, which knew two
        labels = pd.unique(pd.concat([each.predictions["predicted"].astype(object) for each in audits]))
        classes = (*sorted(map(str, labels)), "", "")[:2]
    return ReportContext(
        model_name=", ".join(each.name for each in audits),
        model_uri=str(first.summary["model_uri"]),
        train_source=str(first.summary["train_source"]),
        eval_source=str(first.summary["eval_source"]),
        n_train=int(first.summary["n_train"]),
        n_eval=shared,
        n_features=int(first.summary["n_features"]),
        threshold=float(first.summary["threshold"]),
        class_names=classes,
        package_version=__version__,
        generated_at=_now().strftime("%Y-%m-%d %H:%M UTC"),
        run_id=first.resolved.run_id,
        tracking_uri=store.shown_uri,
        messages=messages,
    )


def _manifest() -> Manifest:
    """Taken only for a run that lost its audit's manifest meanwhile."""
    return Manifest(uuid.uuid4().hex, "", _now().isoformat(timespec="seconds"), {})


def _now() -> datetime:
    return datetime.now(timezone.utc)
