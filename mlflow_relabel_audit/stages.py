"""The stages of an audit: what is computed, and what each result becomes in files, metrics and pages."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from mlflow_relabel_audit import __version__, reports, tracking
from mlflow_relabel_audit.analyses.bias import BiasResult
from mlflow_relabel_audit.analyses.noise.audit import NoiseResult
from mlflow_relabel_audit.analyses.noise.correction import Correction, not_measured
from mlflow_relabel_audit.analyses.noise.injected import NoiseCurve
from mlflow_relabel_audit.analyses.noise.injected import noise_curve as draw_noise_curve
from mlflow_relabel_audit.analyses.robustness import RobustnessResult
from mlflow_relabel_audit.reports import ReportContext
from mlflow_relabel_audit.tracking import (
    Artifact,
    Claim,
    Manifest,
    Metric,
    Note,
    Output,
    Subject,
    Tag,
)

Progress = Callable[[int, int, str], None]

REPORT = "robustness.html"


def report_context(subject: Subject, include_rows: bool, messages: Sequence[str] = ()) -> ReportContext:
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
        class_names=tuple(map(str, problem.classes)),
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


def find_noise(subject: Subject, robust: RobustnessResult) -> NoiseResult:
    """Score the training labels; evaluation rows that are not the training rows pin the rates down."""
    rows = subject.evaluation
    if subject.on_training_rows or rows.y is None:
        return subject.auditor.noise(flip_sets=robust.sets)
    return subject.auditor.noise(rows.X, rows.y, flip_sets=robust.sets)


def weigh_correction(subject: Subject, noise: NoiseResult) -> Correction:
    """Measure on evaluation rows what correcting the suspects changes."""
    rows = subject.evaluation
    if subject.on_training_rows or rows.y is None:
        return not_measured("What correcting suspects buys is not measured: it needs labelled evaluation rows.")
    return subject.auditor.correction(noise, rows.X, rows.y)


def trace_noise(subject: Subject, progress: Progress | None) -> NoiseCurve:
    """Follow k and accuracy while label noise is injected."""
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


def find_bias(subject: Subject, robust: RobustnessResult, row_sets: Mapping[str, Any]) -> BiasResult:
    """Compare groups by the labels, and the named sets of training rows, that their flip sets hold."""
    training, rows = subject.training, subject.evaluation
    return subject.auditor.bias(training.groups, rows.X, rows.y, rows.groups, result=robust, row_sets=row_sets)


def robustness_stage(result: RobustnessResult, context: ReportContext, folder: Path) -> Iterator[Output]:
    """Yield the tables, figures and page of the flip sets."""
    yield tracking.parquet_file(folder, "predictions.parquet", result.predictions)
    yield tracking.parquet_file(folder, "flip_sets.parquet", result.sets)
    yield tracking.text_file(folder, "predictions.json", tracking.table_json(result.predictions))
    yield tracking.text_file(folder, REPORT, reports.render_robustness(result, context))
    yield from (Metric(name, value) for name, value in result.summary.items())


def noise_stage(
    result: NoiseResult, curve: NoiseCurve | None, correction: Correction | None, context: ReportContext, folder: Path
) -> Iterator[Output]:
    """Yield the page, suspects and figures of the noise audit."""
    yield tracking.text_file(folder, "suspects.csv", reports.suspects_for_review(result, context).to_csv(index=False))
    if curve is not None:
        yield tracking.text_file(folder, "noise_curve.csv", curve.table.to_csv(index=False))
    yield tracking.text_file(folder, "noise.html", reports.render_noise(result, context, curve, correction))
    yield from (Metric(name, value) for name, value in result.summary.items())


def bias_stage(result: BiasResult, context: ReportContext, folder: Path) -> Iterator[Output]:
    """Yield the page and figures of the bias audit."""
    yield tracking.text_file(folder, "bias.html", reports.render_bias(result, context))
    yield from (Metric(name, value) for name, value in result.summary.items())


def hessian_stage(subject: Subject, folder: Path) -> Iterator[Output]:
    """Yield the files of the factored Hessian."""
    for file in subject.auditor.save_hessian(folder):
        yield Artifact(file.name, file)
    yield Metric("hessian_cached", float(subject.auditor.hessian_cached))


def summary_stage(
    subject: Subject,
    robust: RobustnessResult,
    analyses: Sequence[Any],
    context: ReportContext,
    outputs: Sequence[Output],
    folder: Path,
) -> Iterator[Output]:
    """summary.json, summary.md, the run's description and its tags, of all that came before.

    ``analyses`` are results with findings, figures or both, in the order of the page; None where one was not made.
    """
    sentence = reports.verdict_sentence(robust, context)
    facts = {
        "metrics": tracking.metrics(outputs),
        "verdict": sentence,
        "messages": list(context.messages),
        **subject.facts(),
    }
    yield tracking.text_file(folder, "summary.json", json.dumps(facts, indent=2, sort_keys=True) + "\n")
    yield tracking.text_file(folder, "summary.md", reports.summary_markdown(context, robust, *analyses))
    resolved = subject.resolved
    if resolved.run_id is not None and resolved.experiment_id is not None:
        paths = list(dict.fromkeys(["summary.md", *(item.path for item in tracking.artifacts(outputs))]))
        yield Note(reports.description_block(context, resolved.experiment_id, resolved.run_id, paths, sentence))
    yield Tag("version", __version__)
    yield Tag("verdict", sentence)


def manifest_of(subject: Subject, claim: Claim | None, outputs: Sequence[Output]) -> Manifest:
    """The list of this audit's files, with the contests of an earlier one of the same model and data."""
    files = tracking.listing(tracking.artifacts(outputs))
    fingerprint = subject.auditor.fingerprint
    if claim is not None and claim.previous is not None and claim.previous.fingerprint == fingerprint:
        kept = claim.previous.artifacts.items()
        files = {**{path: dict(entry) for path, entry in kept if path.startswith("contest/")}, **files}
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    audit_id = uuid.uuid4().hex if claim is None else claim.audit_id
    return Manifest(audit_id, fingerprint, created, files, subject.facts())
