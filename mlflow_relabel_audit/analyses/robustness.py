"""How many training labels, and which, flip each prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from mlflow_relabel_audit.analyses.checkpoint import Checkpoint
from mlflow_relabel_audit.analyses.flip_table import FlipTable
from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.flips.certificate.bound import Certificate
from mlflow_relabel_audit.flips.certificate.plain import plain_lower_bounds
from mlflow_relabel_audit.flips.order.asked import Asked
from mlflow_relabel_audit.flips.order.influence import EstimateBlock, estimate, responses_of
from mlflow_relabel_audit.flips.order.response import response_scale
from mlflow_relabel_audit.flips.relabelling import RelabelEffect
from mlflow_relabel_audit.flips.search.closest import estimated_closest, least_by_owner, search_closest
from mlflow_relabel_audit.flips.search.flip_set import UNVERIFIED, VERIFIED, FlipSet
from mlflow_relabel_audit.flips.search.prefix import SearchCost, VerifiedSearch
from mlflow_relabel_audit.problem import FloatArray, IntArray, Problem
from mlflow_relabel_audit.rows import Progress, Rows

Search = Literal["prefix", "adaptive"]

FLIPS_TO = "flips_to"
"""The column that predictions of more than two classes have: the class that each flips to."""
FRAGILE_FRACTION = 0.02
CONFIDENT_PROBABILITY = 0.9
CONFIDENT_FRAGILE_FRACTION = 0.01


@dataclass(frozen=True)
class RobustnessResult:
    """The flip sets of T predictions.

    Attributes
    ----------
    predictions : DataFrame
        a row per prediction: row_id, label, predicted, probability (of the positive class of two, of the predicted one
        of more), margin, k_paper, k_estimate, k, k_lower (Int64, missing where there is none), fraction (k / n),
        status, correct; and flips_to, the class it flips to, of more than two.
    sets : FlipTable
        a row per label of a flip set: row_id, rank (from 1), train_id, train_label, new_label, influence (signed
        first-order move of the margin), to be read part by part. Without verification the sets are those of
        ``k_estimate``.
    summary : dict
        the metrics; those that nothing defines are absent.
    cost : SearchCost
        what the verified search spent.
    stopped : bool
        whether the time allowed ran out before the last prediction.
    """

    predictions: pd.DataFrame
    sets: FlipTable
    summary: dict[str, float]
    cost: SearchCost = field(default_factory=lambda: SearchCost(0.0, 0, 0))
    stopped: bool = False

    @property
    def flip_sets(self) -> pd.DataFrame:
        """All of ``sets`` as one frame, which is large where many predictions rest on many labels."""
        return self.sets.frame()


@dataclass(frozen=True)
class Fitted:
    """All that the analyses ask of a fitted model and its training rows."""

    problem: Problem
    rows: Rows
    point: StationaryPoint
    effect: RelabelEffect
    row_norms: FloatArray = field(repr=False)
    train_ids: Any = field(repr=False)
    certificate: Certificate | None = field(default=None, repr=False)
    certified: bool = False


def robustness(
    fitted: Fitted,
    evaluation: Rows,
    labels: FloatArray | None = None,
    *,
    row_ids: Any = None,
    verify: bool = True,
    search: Search = "prefix",
    progress: Progress | None = None,
    deadline: Callable[[], bool] | None = None,
    checkpoint: Checkpoint | None = None,
) -> RobustnessResult:
    """Find the flip set of every evaluation row.

    Parameters
    ----------
    fitted : Fitted
        with a certificate where lower bounds are wanted.
    evaluation : Rows
        T rows, transformed as the training rows are.
    labels : ndarray of shape (T,), optional
        0.0 or 1.0, NaN where unknown.
    row_ids : sequence of length T, optional
        positions by default.
    verify : bool
        refit; otherwise every status is ``unverified`` and k is missing.
    search : {"prefix", "adaptive"}
        prefixes of the influence order at the fitted point, or try also to shrink them by ranking again at the
        refit.
    progress : callable, optional
        ``progress(done, total, stage)``.
    deadline : callable, optional
        returns True once the time allowed is over; the search then stops between blocks.
    checkpoint : Checkpoint, optional
        where finished blocks are written, and those of an earlier, interrupted call are taken from.

    Raises
    ------
    RequestError
        Shapes or ids do not fit, or ``search`` is unknown.
    """
    if search not in ("prefix", "adaptive"):
        raise RequestError(f"search: got {search!r}; pass 'prefix' or 'adaptive'")
    if evaluation.p != fitted.rows.p:
        raise RequestError(
            f"evaluation rows: got {evaluation.features_in} features; the model takes {fitted.rows.features_in}"
        )
    ids = np.arange(evaluation.n) if row_ids is None else np.asarray(row_ids)
    if len(ids) != evaluation.n:
        raise RequestError(f"evaluation rows: got {len(ids)} row ids for {evaluation.n} rows; pass one per row")
    truth = np.full(evaluation.n, np.nan) if labels is None else np.asarray(labels, dtype=np.float64)
    if len(truth) != evaluation.n:
        raise RequestError(f"evaluation rows: got {len(truth)} labels for {evaluation.n} rows; pass one per row")
    problem, rows, point = fitted.problem, fitted.rows, fitted.point
    searcher = VerifiedSearch(problem, rows, point, fitted.effect, fitted.row_norms)
    predictions: list[pd.DataFrame] = []
    sets = FlipTable()
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, evaluation.n, "flip sets")

    for part in [] if checkpoint is None else checkpoint.finished(sets):
        predictions.append(part)
        report(len(part))
    if evaluation.n and not done:
        report(0)
    stopped = False
    estimates = estimate(rows, point, fitted.effect, evaluation, problem, first=done)
    wide = searcher.width if verify and not searcher.keeps else 1
    for block, lower in _together(bounded_below(fitted, estimates), wide):
        if deadline is not None and deadline():
            stopped = True
            break
        span = slice(block.start, block.stop)
        if verify:
            found, chosen = search_closest(searcher, block, adaptive=search == "adaptive", progress=report)
        else:
            found, chosen = estimated_closest(block)
            report(len(found))
        answer = block if len(chosen) == len(block.orders) else block.only(chosen)
        least = least_by_owner(block, lower)
        predictions.append(_prediction_frame(fitted, answer, found, least, ids[span], truth[span]))
        labels_of = _flip_frame(fitted, answer, found, ids[span])
        file = None if checkpoint is None else checkpoint.add(len(predictions) - 1, predictions[-1], labels_of)
        sets.add(labels_of, file)
    table = pd.concat(predictions, ignore_index=True) if predictions else _empty_predictions(fitted, ids, truth)
    if not predictions:
        sets.add(_empty_flip_sets(fitted, ids))
    return RobustnessResult(table, sets, summarise(table), searcher.cost, stopped)


def bounded_below(fitted: Fitted, blocks: Iterator[EstimateBlock]) -> Iterator[tuple[EstimateBlock, IntArray]]:
    """Yield each block with ``k_lower`` of its margins, shape (B,); all 1 without a certificate."""
    certificate = fitted.certificate
    for block in blocks:
        lower: IntArray = np.ones(len(block.orders), dtype=np.int64)
        if fitted.rows.outputs > 1:
            lower = plain_lower_bounds(block, fitted.effect, fitted.row_norms)
        elif certificate is not None:
            norms = np.sqrt(np.maximum(np.einsum("ij,ij->j", block.targets, block.direction), 0.0))
            for some, response in responses_of(fitted.rows, block):
                error = response_scale(fitted.rows, block.direction[:, some])
                lower[some] = certificate.lower_bounds(block.margin[some], response, error, norms[some])
        yield block, lower


def _together(blocks: Iterator[tuple[EstimateBlock, IntArray]], wide: int) -> Iterator[tuple[EstimateBlock, IntArray]]:
    """Join blocks until ``wide`` predictions share the passes of a search; their responses are not kept."""
    held: list[tuple[EstimateBlock, IntArray]] = []

    def joined() -> tuple[EstimateBlock, IntArray]:
        return EstimateBlock.joined([block for block, _ in held]), np.concatenate([lower for _, lower in held])

    for item in blocks:
        held.append(item)
        if sum(len(block.orders) for block, _ in held) >= wide:
            yield joined()
            held.clear()
    if held:
        yield joined()


def confidence(predictions: pd.DataFrame) -> FloatArray:
    """Probability of the likelier class of two, of the predicted one of more, shape (T,); NaN where it is missing."""
    given = pd.to_numeric(predictions["probability"], errors="coerce").astype("Float64")
    probability: FloatArray = given.to_numpy(dtype=np.float64, na_value=np.nan)
    return probability if FLIPS_TO in predictions else np.maximum(probability, 1.0 - probability)


def summarise(predictions: pd.DataFrame) -> dict[str, float]:
    """Metrics of a predictions table; those that no prediction defines are absent."""
    if predictions.empty:
        return {}
    total = len(predictions)
    k = predictions["k"].dropna().to_numpy(dtype=np.float64)
    fraction = predictions["fraction"].to_numpy(dtype=np.float64)
    status = predictions["status"]
    metrics: dict[str, float] = {}
    if len(k):
        known = fraction[np.isfinite(fraction)]
        metrics |= {
            "k_median": float(np.median(k)),
            "k_mean": float(k.mean()),
            "k_p10": float(np.quantile(k, 0.1)),
            "k_p90": float(np.quantile(k, 0.9)),
            "fraction_median": float(np.median(known)),
            "below_2pct_share": float(np.nansum(fraction < FRAGILE_FRACTION) / total),
            "confident_fragile_share": float(
                np.sum((confidence(predictions) > CONFIDENT_PROBABILITY) & (fraction < CONFIDENT_FRAGILE_FRACTION))
                / total
            ),
        }
    if (status != UNVERIFIED).any():
        metrics["flippable_share"] = float((status == VERIFIED).mean())
    metrics["verified_share"] = float((status != UNVERIFIED).mean())
    lower = predictions["k_lower"].dropna().to_numpy(dtype=np.float64)
    if len(lower):
        metrics["k_lower_median"] = float(np.median(lower))
    correct = predictions["correct"].dropna()
    if len(correct):
        metrics["accuracy"] = float(correct.astype(float).mean())
    return metrics


def _counts(values: Any) -> pd.api.extensions.ExtensionArray:
    """Nullable counts, 0 meaning there is none."""
    whole = np.asarray(values, dtype=np.int64)
    return pd.arrays.IntegerArray(whole, whole == 0)


def _classes(problem: Problem, positive: Any) -> Any:
    """Class labels for codes; missing where NaN."""
    values = np.asarray(positive, dtype=np.float64)
    known = ~np.isnan(values)
    labels = np.asarray(problem.classes)[np.where(known, values, 0.0).astype(np.intp)]
    if known.all():
        return labels
    series = pd.Series(labels).convert_dtypes()
    return series.where(known).array


def _prediction_frame(
    fitted: Fitted,
    block: EstimateBlock,
    found: list[FlipSet],
    lower: IntArray,
    ids: Any,
    truth: FloatArray,
) -> pd.DataFrame:
    problem, n, predicted = fitted.problem, fitted.rows.n, block.asked.predicted
    size = np.array([item.k if item.status == VERIFIED else 0 for item in found], dtype=np.int64)
    k = _counts(size)
    correct = pd.arrays.BooleanArray(predicted == truth, np.isnan(truth))
    several = {FLIPS_TO: _classes(problem, block.asked.wanted)} if problem.outputs > 1 else {}
    return pd.DataFrame(
        {
            "row_id": ids,
            "label": _classes(problem, truth),
            "predicted": _classes(problem, predicted),
            "probability": block.asked.probability,
            "margin": block.margin,
            "k_paper": _counts([order.k_paper for order in block.orders]),
            "k_estimate": _counts([order.k_estimate for order in block.orders]),
            "k": k,
            "k_lower": pd.arrays.IntegerArray(lower.astype(np.int64), np.full(len(lower), not fitted.certified)),
            "fraction": np.where(size > 0, size / n, np.nan),
            "status": [item.status for item in found],
            "correct": correct,
            **several,
        }
    )


def _flip_frame(fitted: Fitted, block: EstimateBlock, found: list[FlipSet], ids: Any) -> pd.DataFrame:
    sizes = np.array([item.k for item in found], dtype=np.int64)
    index = np.concatenate([item.index for item in found]).astype(np.intp)
    label = np.concatenate([item.change.label for item in found])
    influence = np.concatenate([item.influence for item in found])
    ranks = np.arange(len(index)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + 1
    return pd.DataFrame(
        {
            "row_id": np.repeat(np.asarray(ids), sizes),
            "rank": ranks,
            "train_id": np.asarray(fitted.train_ids)[index],
            "train_label": _classes(fitted.problem, fitted.rows.y[index]),
            "new_label": _classes(fitted.problem, label),
            "influence": influence * np.repeat(block.toward, sizes),
        }
    )


def _empty_predictions(fitted: Fitted, ids: Any, truth: FloatArray) -> pd.DataFrame:
    nothing, none = np.zeros((fitted.rows.p, 0)), np.zeros(0, dtype=np.intp)
    asked = Asked(none, none, none, nothing, np.zeros(0), np.zeros(0), np.zeros(0))
    block = EstimateBlock(0, 0, asked, nothing, [])
    return _prediction_frame(fitted, block, [], np.zeros(0, dtype=np.int64), ids[:0], truth[:0])


def _empty_flip_sets(fitted: Fitted, ids: Any) -> pd.DataFrame:
    columns = ["row_id", "rank", "train_id", "train_label", "new_label", "influence"]
    return pd.DataFrame({name: [] for name in columns})
