"""The audit of a logged model: resolve, read, analyse, report, write back; and the contest of one decision.

Each stage yields what is to be kept (`tracking.outputs`), and one writer keeps it. A request that is wrong is
refused before anything is written.
"""

from __future__ import annotations

import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from mlflow_relabel_audit import __version__, reports, tracking
from mlflow_relabel_audit.analyses.bias import BiasResult
from mlflow_relabel_audit.analyses.contest import ContestResult
from mlflow_relabel_audit.analyses.noise import NoiseResult
from mlflow_relabel_audit.analyses.noise_curve import NoiseCurve
from mlflow_relabel_audit.analyses.noise_curve import noise_curve as draw_noise_curve
from mlflow_relabel_audit.analyses.robustness import RobustnessResult
from mlflow_relabel_audit.reports import ReportContext
from mlflow_relabel_audit.tracking import (
    Artifact,
    Claim,
    Columns,
    Manifest,
    Metric,
    Note,
    Output,
    Store,
    Subject,
    Tag,
)

Progress = Callable[[int, int, str], None]

_REPORT = "robustness.html"


@dataclass(frozen=True)
class AuditResult:
    """What an audit found and where it is kept.

    Attributes
    ----------
    run_id : str or None
        the audited run; None for a model logged outside one.
    model_uri, tracking_uri : str
        without credentials.
    summary : dict
        the metrics, as logged under ``relabel_audit/``.
    predictions, flip_sets : DataFrame
        as in predictions.parquet and flip_sets.parquet.
    hessian_cached : bool
        whether the Hessian of an earlier audit was reused.
    artifacts : tuple of str
        paths under ``relabel_audit/`` (or the output directory).
    messages : tuple of str
        what the reader should know: versions, sampling, what was left out and why.
    report_location : str
        where to look at the report.
    logged : bool
        whether it was written to the run.
    """

    run_id: str | None
    model_uri: str
    tracking_uri: str
    summary: dict[str, float]
    predictions: pd.DataFrame = field(repr=False)
    flip_sets: pd.DataFrame = field(repr=False)
    hessian_cached: bool
    artifacts: tuple[str, ...]
    messages: tuple[str, ...]
    report_location: str
    logged: bool


@dataclass(frozen=True)
class ContestOutcome:
    """One contested decision and where its page is kept; fields as in `AuditResult`."""

    run_id: str | None
    model_uri: str
    tracking_uri: str
    result: ContestResult
    artifacts: tuple[str, ...]
    messages: tuple[str, ...]
    report_location: str
    logged: bool


def audit(
    run_id: str | None = None,
    model_uri: str | None = None,
    *,
    model_name: str | None = None,
    train_data: str | None = None,
    target: str | None = None,
    eval_data: str | None = None,
    id_column: str | None = None,
    weight_column: str | None = None,
    groups: Sequence[str] = (),
    threshold: float | None = None,
    noise_curve: bool = False,
    max_predictions: int | None = None,
    search: Literal["prefix", "adaptive"] = "prefix",
    verify: bool = True,
    include_rows: bool = False,
    output_dir: str | Path | None = None,
    log: bool = True,
    tracking_uri: str | None = None,
    progress: Progress | None = None,
) -> AuditResult:
    """Audit a logged model: how many training labels, and which, each of its predictions rests on.

    Parameters
    ----------
    run_id, model_uri : str, optional
        One of the two: the run that logged the model, or ``models:/NAME/3``, ``models:/NAME@ALIAS``,
        ``models:/m-ID``, ``runs:/ID/NAME``.
    model_name : str, optional
        Which model, where the run logged several.
    train_data, eval_data : str, optional
        Parquet or csv: a path or any URI that MLflow downloads. By default the rows stored with the run, or
        those its dataset inputs point to; without evaluation rows a sample of the training rows is audited.
    target, id_column, weight_column : str, optional
        Columns of labels, of unique row names, of the weights given to fit.
    groups : sequence of str
        Columns of groups whose labels and errors to compare.
    threshold : float, optional
        Probability above which the second class is predicted; 0.5 by default.
    max_predictions : int, optional
        Audit a random sample of this many evaluation rows, the same one every time.
    noise_curve : bool
        Also inject label noise, refit, and follow k and accuracy.
    search, verify
        See `Auditor.robustness`.
    include_rows : bool
        Let reports show the rows themselves.
    output_dir : path, optional
        Also keep the artifacts in this directory, which must be new, empty, or hold an earlier audit.
    log : bool
        Write to the run.
    tracking_uri : str, optional
        By default MLflow's own.
    progress : callable, optional
        ``progress(done, total, stage)``.

    Raises
    ------
    RequestError
        The request or its data is wrong; nothing was written.
    StoreError
        A server or file system failed; what was stored before is still there.
    """
    began = time.monotonic()
    columns = Columns(target, id_column, weight_column, tuple(groups))
    with _workspace(output_dir) as (folder, target_dir):
        store = Store.connect(tracking_uri)
        resolved = tracking.resolve(store, run_id=run_id, model_uri=model_uri, model_name=model_name)
        subject = tracking.prepare(store, resolved, columns, folder, train_data, eval_data, threshold, target_dir)
        subject = subject.sampled(max_predictions)
        claim, refused = None, None
        if log:
            claim, refused = tracking.begin_unless_refused(store, resolved, local=target_dir is not None)
        try:
            with tracking.caught_warnings() as caught:
                robust = subject.auditor.robustness(
                    subject.evaluation.X,
                    subject.evaluation.y,
                    verify=verify,
                    search=search,
                    row_ids=subject.evaluation.row_ids,
                    progress=progress,
                )
                noise = _noise(subject, robust)
                curve = _noise_curve(subject, progress) if noise_curve else None
                bias = _bias(subject, robust) if groups else None
            files = folder / "files"
            context = _context(subject, include_rows, (*([refused] if refused else []), *caught))
            outputs = [
                *_robustness_stage(robust, context, files),
                *_noise_stage(noise, curve, context, files),
            ]
            if bias is not None:
                outputs += _bias_stage(bias, context, files)
            outputs += _hessian_stage(subject, files)
            outputs.append(Metric("seconds", time.monotonic() - began))
            outputs += _summary_stage(subject, robust, noise, bias, context, outputs, files)
            manifest = _manifest(subject, claim, outputs)
            if target_dir is not None:
                tracking.write_directory(tracking.artifacts(outputs), manifest, target_dir)
            if claim is not None:
                dataset = subject.evaluation.dataset
                present = tracking.HESSIAN if subject.auditor.hessian_cached else ()
                tracking.publish(store, claim, outputs, manifest=manifest, dataset=dataset, present=present)
        except BaseException as error:
            if claim is not None:
                tracking.abandon(store, claim, error)
            raise
        return AuditResult(
            run_id=resolved.run_id,
            model_uri=tracking.redact(resolved.model_uri),
            tracking_uri=store.shown_uri,
            summary=tracking.metrics(outputs),
            predictions=robust.predictions,
            flip_sets=robust.flip_sets,
            hessian_cached=subject.auditor.hessian_cached,
            artifacts=tuple(sorted(manifest.artifacts)),
            messages=context.messages,
            report_location=tracking.location(
                store, resolved, _REPORT, output_dir=target_dir, logged=claim is not None
            ),
            logged=claim is not None,
        )


def contest(
    run_id: str | None = None,
    model_uri: str | None = None,
    *,
    row: Any,
    model_name: str | None = None,
    train_data: str | None = None,
    target: str | None = None,
    eval_data: str | None = None,
    id_column: str | None = None,
    weight_column: str | None = None,
    threshold: float | None = None,
    removal: bool = True,
    include_rows: bool = False,
    output_dir: str | Path | None = None,
    log: bool = True,
    tracking_uri: str | None = None,
) -> ContestOutcome:
    """Lay out one decision of a logged model: the labels it rests on, and what changing each moves.

    Parameters
    ----------
    row : str or the type of the ids
        Id of a row of the evaluation data; its position where no ``id_column`` names the rows.
    removal : bool
        Also find training rows whose removal flips the decision.

    The others are those of `audit`, and so are the errors.
    """
    columns = Columns(target, id_column, weight_column)
    with _workspace(output_dir, whole=False) as (folder, target_dir):
        store = Store.connect(tracking_uri)
        resolved = tracking.resolve(store, run_id=run_id, model_uri=model_uri, model_name=model_name)
        subject = tracking.prepare(store, resolved, columns, folder, train_data, eval_data, threshold, target_dir)
        subject = replace(subject, evaluation=subject.evaluation.row(row))
        rows = subject.evaluation
        with tracking.caught_warnings() as caught:
            result = subject.auditor.contest(
                rows.X, removal, row_id=rows.row_ids[0], label=None if rows.y is None else rows.y[0]
            )
        context = _context(subject, include_rows, caught)
        path = f"contest/{tracking.file_name(row)}.html"
        page = tracking.text_file(folder, path, reports.render_contest(result, context))
        manifest = _manifest(subject, None, [page])
        logged, messages = log, context.messages
        if target_dir is not None:
            tracking.add_file(page, target_dir)
        if log:
            try:
                tracking.add_artifact(store, resolved, page, manifest)
            except tracking.PermissionDeniedError as error:
                if target_dir is None:
                    raise
                logged, messages = False, (*messages, f"not logged to the run: {error}")
        return ContestOutcome(
            run_id=resolved.run_id,
            model_uri=tracking.redact(resolved.model_uri),
            tracking_uri=store.shown_uri,
            result=result,
            artifacts=(path,),
            messages=messages,
            report_location=tracking.location(store, resolved, path, output_dir=target_dir, logged=logged),
            logged=logged,
        )


@contextmanager
def _workspace(output_dir: str | Path | None, *, whole: bool = True) -> Iterator[tuple[Path, Path | None]]:
    """A temporary folder, and the checked output directory."""
    target = None if output_dir is None else Path(output_dir)
    if target is not None:
        target = tracking.check_directory(target) if whole else target.expanduser().absolute()
    with tracking.quiet(), tempfile.TemporaryDirectory(prefix="relabel-audit-") as folder:
        yield Path(folder), target


def _context(subject: Subject, include_rows: bool, messages: Sequence[str] = ()) -> ReportContext:
    """What the reports say beside the figures."""
    resolved, problem = subject.resolved, subject.auditor.problem
    return ReportContext(
        model_name=resolved.registered_name or resolved.model_name,
        model_uri=tracking.redact(resolved.model_uri),
        train_source=subject.training.source,
        eval_source="the training rows" if subject.on_training_rows else subject.evaluation.source,
        n_train=subject.auditor.rows.n,
        n_eval=len(subject.evaluation),
        n_features=subject.auditor.rows.features_in,
        threshold=problem.threshold,
        class_names=(str(problem.classes[0]), str(problem.classes[1])),
        package_version=__version__,
        generated_at=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        model_version=resolved.version,
        run_id=resolved.run_id,
        tracking_uri=subject.store.shown_uri,
        messages=(*subject.messages, *messages),
        include_rows=include_rows,
        train_rows=subject.training.frame() if include_rows else None,
        eval_rows=subject.evaluation.frame() if include_rows else None,
    )


# -- stages --------------------------------------------------------------------------------------------------


def _noise(subject: Subject, robust: RobustnessResult) -> NoiseResult:
    rows = subject.evaluation
    if subject.on_training_rows or rows.y is None:
        return subject.auditor.noise(flip_sets=robust.flip_sets)
    return subject.auditor.noise(rows.X, rows.y, flip_sets=robust.flip_sets)


def _noise_curve(subject: Subject, progress: Progress | None) -> NoiseCurve:
    auditor, rows = subject.auditor, subject.evaluation
    return draw_noise_curve(
        auditor.problem,
        auditor.rows,
        auditor.point,
        auditor.evaluation_rows(rows.X).features,
        None if rows.y is None else auditor.problem.encode(rows.y),
        progress=None if progress is None else partial(_staged, progress, "noise curve"),
    )


def _staged(progress: Progress, stage: str, done: int, total: int) -> None:
    progress(done, total, stage)


def _bias(subject: Subject, robust: RobustnessResult) -> BiasResult:
    training, rows = subject.training, subject.evaluation
    return subject.auditor.bias(training.groups, rows.X, rows.y, rows.groups, result=robust)


def _robustness_stage(result: RobustnessResult, context: ReportContext, folder: Path) -> Iterator[Output]:
    yield tracking.parquet_file(folder, "predictions.parquet", result.predictions)
    yield tracking.parquet_file(folder, "flip_sets.parquet", result.flip_sets)
    yield tracking.text_file(folder, "predictions.json", tracking.table_json(result.predictions))
    yield tracking.text_file(folder, _REPORT, reports.render_robustness(result, context))
    yield from (Metric(name, value) for name, value in result.summary.items())


def _noise_stage(
    result: NoiseResult, curve: NoiseCurve | None, context: ReportContext, folder: Path
) -> Iterator[Output]:
    yield tracking.text_file(folder, "suspects.csv", result.suspects.to_csv(index=False))
    yield tracking.text_file(folder, "noise.html", reports.render_noise(result, context, curve))
    yield from (Metric(name, value) for name, value in result.summary.items())


def _bias_stage(result: BiasResult, context: ReportContext, folder: Path) -> Iterator[Output]:
    yield tracking.text_file(folder, "bias.html", reports.render_bias(result, context))
    yield from (Metric(name, value) for name, value in result.summary.items())


def _hessian_stage(subject: Subject, folder: Path) -> Iterator[Output]:
    for file in subject.auditor.save_hessian(folder):
        yield Artifact(file.name, file)
    yield Metric("hessian_cached", float(subject.auditor.hessian_cached))


def _summary_stage(
    subject: Subject,
    robust: RobustnessResult,
    noise: NoiseResult,
    bias: BiasResult | None,
    context: ReportContext,
    outputs: Sequence[Output],
    folder: Path,
) -> Iterator[Output]:
    """summary.json, summary.md, the run's description and its tags, of all that came before."""
    sentence = reports.verdict_sentence(robust, context)
    facts = {
        "metrics": tracking.metrics(outputs),
        "verdict": sentence,
        "messages": list(context.messages),
        **subject.facts(),
    }
    yield tracking.text_file(folder, "summary.json", json.dumps(facts, indent=2, sort_keys=True) + "\n")
    yield tracking.text_file(folder, "summary.md", reports.summary_markdown(context, robust, noise, bias))
    resolved = subject.resolved
    if resolved.run_id is not None and resolved.experiment_id is not None:
        paths = ["summary.md", *(item.path for item in tracking.artifacts(outputs))]
        yield Note(reports.description_block(context, resolved.experiment_id, resolved.run_id, paths, sentence))
    yield Tag("version", __version__)
    yield Tag("verdict", sentence)


def _manifest(subject: Subject, claim: Claim | None, outputs: Sequence[Output]) -> Manifest:
    """The list of this audit's files, with the contests of an earlier one of the same model and data."""
    files = tracking.listing(tracking.artifacts(outputs))
    fingerprint = subject.auditor.fingerprint
    if claim is not None and claim.previous is not None and claim.previous.fingerprint == fingerprint:
        kept = claim.previous.artifacts.items()
        files = {**{path: dict(entry) for path, entry in kept if path.startswith("contest/")}, **files}
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    audit_id = uuid.uuid4().hex if claim is None else claim.audit_id
    return Manifest(audit_id, fingerprint, created, files, subject.facts())
