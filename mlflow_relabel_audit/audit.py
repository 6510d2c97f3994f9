"""The audit of a logged model: resolve, read, analyse, report, write back; and the contest of one decision.

Each stage yields what is to be kept (`tracking.outputs`), and one writer keeps it. A request that is wrong is
refused before anything is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from mlflow_relabel_audit import reports, tracking
from mlflow_relabel_audit.analyses.contest import ContestResult
from mlflow_relabel_audit.analyses.flip_table import FlipTable
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.review import read_row_sets
from mlflow_relabel_audit.stages import (
    REPORT,
    bias_stage,
    find_bias,
    find_noise,
    hessian_stage,
    manifest_of,
    noise_stage,
    report_context,
    robustness_stage,
    summary_stage,
    trace_noise,
    weigh_correction,
)
from mlflow_relabel_audit.tracking import DataKeywords, DataOptions, Metric, Store

if TYPE_CHECKING:
    from typing_extensions import Unpack

Progress = Callable[[int, int, str], None]


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
    predictions : DataFrame
        as in predictions.parquet.
    sets : FlipTable
        as in flip_sets.parquet, to be read part by part; ``flip_sets`` is all of it as one frame.
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
    sets: FlipTable = field(repr=False)
    hessian_cached: bool
    artifacts: tuple[str, ...]
    messages: tuple[str, ...]
    report_location: str
    logged: bool

    @property
    def flip_sets(self) -> pd.DataFrame:
        """All of ``sets`` as one frame."""
        return self.sets.frame()


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
    memory_limit: int | str | None = None,
    dask: str | None = None,
    row_sets: Mapping[str, str] | None = None,
    **data: Unpack[DataKeywords],
) -> AuditResult:
    """Audit a logged model: how many training labels, and which, each of its predictions rests on.

    Parameters
    ----------
    run_id, model_uri : str, optional
        One of the two: the run that logged the model, or ``models:/NAME/3``, ``models:/NAME@ALIAS``,
        ``models:/m-ID``, ``runs:/ID/NAME``.
    model_name : str, optional
        Which model, where the run logged several.
    threshold : float, optional
        Probability above which the second of two classes is predicted; 0.5 by default, and for more classes.
    max_predictions : int, optional
        Audit a random sample of this many evaluation rows, the same one every time.
    noise_curve : bool
        Also inject label noise, refit, and follow k and accuracy.
    search, verify
        See `Auditor.robustness`.
    include_rows : bool
        Let reports show the rows themselves.
    output_dir : path, optional
        Also keep the artifacts in this directory, which must be new, empty, or hold an earlier audit. Finished
        predictions are kept beside it until all are done: an audit that was interrupted goes on there.
    log : bool
        Write to the run.
    tracking_uri : str, optional
        By default MLflow's own.
    progress : callable, optional
        ``progress(done, total, stage)``, see `Auditor` and `Auditor.robustness`.
    memory_limit, dask : optional
        Where training rows are kept and worked on, see `Auditor`; Parquet files are then read a part at a time.
    row_sets : mapping of name to path or URI, optional
        Tables of training ids (column ``train_id``): the share that these rows have in the flip sets of each
        group's decisions. Needs ``groups``.
    **data
        ``train_data``, ``target``, ``eval_data``, ``id_column``, ``weight_column``, ``groups``: where the rows are,
        see `tracking.DataOptions`.

    Raises
    ------
    RequestError
        The request or its data is wrong; nothing was written.
    StoreError
        A server or file system failed; what was stored before is still there.
    """
    began = time.monotonic()
    options = DataOptions(**data)
    if row_sets and not options.groups:
        raise RequestError("row sets: got no groups; say with --group COL whose decisions they are compared over")
    with _workspace(output_dir) as (folder, target_dir):
        store = Store.connect(tracking_uri)
        resolved = tracking.resolve(store, run_id=run_id, model_uri=model_uri, model_name=model_name)
        subject = tracking.prepare(
            store, resolved, options, folder, threshold, target_dir, memory_limit, dask, progress
        )
        subject = subject.sampled(max_predictions)
        named = read_row_sets(store, row_sets or {}, subject.training, folder / "sets")
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
                    checkpoint=None if target_dir is None else tracking.unfinished(target_dir),
                )
                noise = find_noise(subject, robust)
                buys = weigh_correction(subject, noise)
                curve = trace_noise(subject, progress) if noise_curve else None
                bias = find_bias(subject, robust, named) if options.groups else None
            files = folder / "files"
            context = report_context(subject, include_rows, (*([refused] if refused else []), *caught))
            outputs = [
                *robustness_stage(robust, context, files),
                *noise_stage(noise, curve, buys, context, files),
            ]
            if bias is not None:
                outputs += bias_stage(bias, context, files)
            outputs += hessian_stage(subject, files)
            outputs.append(Metric("seconds", time.monotonic() - began))
            outputs += summary_stage(subject, robust, (noise, buys, curve, bias), context, outputs, files)
            manifest = manifest_of(subject, claim, outputs)
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
            sets=robust.sets,
            hessian_cached=subject.auditor.hessian_cached,
            artifacts=tuple(sorted(manifest.artifacts)),
            messages=context.messages,
            report_location=tracking.location(store, resolved, REPORT, output_dir=target_dir, logged=claim is not None),
            logged=claim is not None,
        )


def contest(
    run_id: str | None = None,
    model_uri: str | None = None,
    *,
    row: Any,
    want: Any = None,
    model_name: str | None = None,
    threshold: float | None = None,
    removal: bool = True,
    include_rows: bool = False,
    output_dir: str | Path | None = None,
    log: bool = True,
    tracking_uri: str | None = None,
    **data: Unpack[DataKeywords],
) -> ContestOutcome:
    """Lay out one decision of a logged model: the labels it rests on, and what changing each moves.

    Parameters
    ----------
    row : str or the type of the ids
        Id of a row of the evaluation data; its position where no ``id_column`` names the rows.
    want : optional
        The class that the set must make the prediction; by default any other than the predicted one.
    removal : bool
        Also find training rows whose removal flips the decision; of two classes only.

    The others are those of `audit`, and so are the errors.
    """
    options = DataOptions(**data)
    with _workspace(output_dir, whole=False) as (folder, target_dir):
        store = Store.connect(tracking_uri)
        resolved = tracking.resolve(store, run_id=run_id, model_uri=model_uri, model_name=model_name)
        subject = tracking.prepare(store, resolved, options, folder, threshold, target_dir)
        subject = replace(subject, evaluation=subject.evaluation.row(row))
        rows = subject.evaluation
        with tracking.caught_warnings() as caught:
            result = subject.auditor.contest(
                rows.X, removal, want=want, row_id=rows.row_ids[0], label=None if rows.y is None else rows.y[0]
            )
        context = report_context(subject, include_rows, caught)
        path = f"contest/{tracking.file_name(row if want is None else f'{row}-to-{want}')}.html"
        page = tracking.text_file(folder, path, reports.render_contest(result, context))
        manifest = manifest_of(subject, None, [page])
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
    with tracking.workspace() as folder:
        yield folder, target
