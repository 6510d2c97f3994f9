"""The estimate pass: for every prediction, the training labels in the order of their influence.

One float32 product of a block of directions ``u_t = H^-1 x_t`` with the training rows gives every influence;
only the head of each order is kept, and grown where its sum falls short.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.curvature.stationary import sigmoid
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.flips.relabelling import RelabelEffect
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import Rows

BUFFER_BYTES = 2**27
MAX_BLOCK = 256
FIRST_HEAD = 64
CHUNK_BYTES = 2**20
CLOSE = 1e-5
"""Where a cumulative float32 influence is this near to its target, the sum is taken again in float64."""


@dataclass(frozen=True)
class InfluenceOrder:
    """The head of one prediction's influence order.

    Attributes
    ----------
    index : ndarray of shape (K,)
        training rows, the one that moves the margin furthest toward the flip first; equal ones by position.
    influence : ndarray of shape (K,), float64
        how far each moves the margin toward the flip, all positive.
    complete : bool
        whether every row with a positive influence is in the head.
    k_estimate : int
        labels whose summed influence carries the margin to zero; 0 where even all of them do not.
    k_paper : int
        the same with the sum taken in probability, f (1 - f) g a label (Algorithm 1 of Yang, Xu and Yu, 2024).
    """

    index: IntArray
    influence: FloatArray
    complete: bool
    k_estimate: int
    k_paper: int


@dataclass(frozen=True)
class EstimateBlock:
    """What the estimate pass leaves behind for a block of B predictions.

    Attributes
    ----------
    start, stop : int
        which evaluation rows.
    rows : ndarray of shape (p, B)
        the evaluation rows, the one included.
    margin : ndarray of shape (B,)
        m_t = x_t . theta - cut.
    direction : ndarray of shape (p, B)
        u_t = H^-1 x_t.
    response : ndarray of shape (B, n), float32
        ``toward_t x_i . u_t``; valid until the next block is drawn.
    toward : ndarray of shape (B,)
        +1 where the margin has to rise for the flip, -1 where it has to fall.
    orders : list of InfluenceOrder
    """

    start: int
    stop: int
    rows: FloatArray = field(repr=False)
    margin: FloatArray
    direction: FloatArray = field(repr=False)
    response: FloatArray = field(repr=False)
    toward: FloatArray
    orders: list[InfluenceOrder] = field(repr=False)


def block_width(n: int) -> int:
    """How many predictions share one pass, so that their influences stay within 128 MiB."""
    return int(np.clip(BUFFER_BYTES // (4 * max(n, 1)), 1, MAX_BLOCK))


def respond(rows: Rows, direction: FloatArray, out: FloatArray) -> FloatArray:
    """``direction' X'`` in float32: (p, B) into ``out`` of shape (B, n).

    Raises
    ------
    RequestError
        The directions do not fit float32.
    """
    try:
        with np.errstate(over="raise"):
            narrow = np.ascontiguousarray(direction, dtype=np.float32)
    except FloatingPointError as error:
        raise RequestError(
            f"influences: up to {np.abs(direction).max():.1e} per unit of a feature, beyond float32; scale the features "
            "(StandardScaler) or strengthen the penalty, and log that model"
        ) from error
    features = narrow[:-1] if rows.intercept else narrow
    turned = np.ascontiguousarray(features.T)
    for block in rows.blocks(np.float32, length=max(rows.block_length(), 2048)):
        part = out[:, block.start : block.stop]
        if rows.sparse:
            part[...] = (block.features @ features).T
        else:
            np.matmul(turned, block.features.T, out=part)
    if rows.intercept:
        out += narrow[-1][:, None]
    return out


def response_error(
    rows: Rows, direction: FloatArray, square_norms: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Bound the rounding of `respond`: ``|error_ti| <= scale_t row_i``, scale of shape (B,), row of shape (n,).

    A float32 sum of p products of rounded factors errs by at most (p + 3) 2^-24 of the product of the norms.
    """
    unit = (rows.p + 3) * 2.0**-24 * 1.01
    return unit * np.linalg.norm(direction, axis=0), np.sqrt(square_norms)


def estimate(
    rows: Rows,
    point: StationaryPoint,
    effect: RelabelEffect,
    evaluation: Rows,
    cut: float,
    width: int | None = None,
) -> Iterator[EstimateBlock]:
    """Yield the influence orders of the evaluation rows, block by block.

    Parameters
    ----------
    rows : Rows
        n training rows.
    point : StationaryPoint
    effect : RelabelEffect
    evaluation : Rows
        the rows whose predictions are asked about.
    cut : float
        logit of the threshold.
    width : int, optional
        predictions in a block; by default as many as fit in 128 MiB, at most 256.
    """
    width = min(width or block_width(rows.n), max(evaluation.n, 1))
    buffer = np.empty((width, rows.n), dtype=np.float32)
    for start in range(0, evaluation.n, width):
        stop = min(start + width, evaluation.n)
        part = evaluation.take(np.arange(start, stop))
        targets = np.ascontiguousarray((part.toarray() if evaluation.sparse else part).T)
        margin = point.theta @ targets - cut
        toward = np.where(margin > 0, -1.0, 1.0)
        direction = point.curvature.solve(targets)
        response = respond(rows, direction * toward, buffer[: stop - start])
        orders = rank_block(rows, effect, margin, direction * toward, response, point, cut)
        yield EstimateBlock(start, stop, targets, margin, direction, response, toward, orders)


def rank_block(
    rows: Rows,
    effect: RelabelEffect,
    margin: FloatArray,
    direction: FloatArray,
    response: FloatArray,
    point: StationaryPoint,
    cut: float,
) -> list[InfluenceOrder]:
    """Rank the rows for each prediction of a block, from ``response = direction' X'`` toward the flip."""
    goal = np.abs(margin)
    probability, threshold = sigmoid(margin + cut), float(sigmoid(np.asarray(cut)))
    spread = probability * sigmoid(-margin - cut)
    goal_paper = np.abs(probability - threshold) / np.maximum(spread, 1e-300)
    coefficient = (-effect.coefficient).astype(np.float32)
    shift = -(effect.shared @ direction)
    chunk = max(1, CHUNK_BYTES // (4 * rows.n))
    orders: list[InfluenceOrder] = []
    for start in range(0, len(margin), chunk):
        some = slice(start, start + chunk)
        influence = response[some] * coefficient
        if np.any(effect.shared):
            influence += (shift[some, None] * effect.count).astype(np.float32)
        orders += _rank_chunk(influence, goal[some], goal_paper[some])
    for t, order in enumerate(orders):
        if _undecided(order, goal[t]) or _undecided(order, goal_paper[t]):
            orders[t] = _decide(rows, effect, order, direction[:, t], shift[t], goal[t], goal_paper[t])
    return orders


def _rank_chunk(influence: FloatArray, goal: FloatArray, goal_paper: FloatArray) -> list[InfluenceOrder]:
    """Rank each row of float32 influences, shape (C, n); heads grow fourfold until they reach their goals."""
    n = influence.shape[1]
    orders: list[InfluenceOrder | None] = [None] * len(goal)
    pending = np.arange(len(goal))
    head = min(FIRST_HEAD, n)
    values = influence
    reachable = np.maximum(influence, 0.0).sum(axis=1, dtype=np.float64)
    need = np.where(goal_paper <= reachable, np.maximum(goal, goal_paper), goal)
    while pending.size:
        if head < n:
            least = np.partition(values, n - head, axis=1)[:, n - head]
            inside = values >= np.maximum(least, np.float32(1e-38))[:, None]
        else:
            inside = values > 0.0
        who, index = np.nonzero(inside)
        ends = np.searchsorted(who, np.arange(1, len(pending)))
        retry = []
        for t, members in enumerate(np.split(index, ends)):
            gains = values[t, members]
            ranked = np.argsort(-gains, kind="stable")
            gains = gains[ranked].astype(np.float64)
            total = np.cumsum(gains)
            target = pending[t]
            spare = 1.25 * need[target]
            complete = head >= n or len(members) < head
            if not complete and total[-1] < spare:
                retry.append(t)
                continue
            k_estimate, k_paper = _crossing(total, goal[target]), _crossing(total, goal_paper[target])
            orders[target] = InfluenceOrder(members[ranked], gains, complete, k_estimate, k_paper)
        pending, values = pending[retry], values[retry]
        head = min(4 * head, n)
    return [order for order in orders if order is not None]


def _crossing(total: FloatArray, goal: float) -> int:
    """First k whose cumulative influence passes the goal, 0 where none does."""
    k = int(np.searchsorted(total, goal, side="right")) + 1
    return k if k <= len(total) else 0


def _undecided(order: InfluenceOrder, goal: float) -> bool:
    total = np.cumsum(order.influence)
    near = np.abs(total[max(0, np.searchsorted(total, goal) - 1) :][:2] - goal)
    return bool(np.any(near <= CLOSE * goal))


def _decide(
    rows: Rows,
    effect: RelabelEffect,
    order: InfluenceOrder,
    direction: FloatArray,
    shift: float,
    goal: float,
    goal_paper: float,
) -> InfluenceOrder:
    """Take the head's influences again in float64."""
    index = np.sort(order.index)
    response = np.asarray(rows.take(index) @ direction).ravel()
    gains = -effect.coefficient[index] * response + shift * effect.count[index]
    ranked = np.argsort(-gains, kind="stable")
    ranked = ranked[gains[ranked] > 0]
    gains = gains[ranked]
    total = np.cumsum(gains)
    return InfluenceOrder(
        index[ranked], gains, order.complete, _crossing(total, goal), _crossing(total, goal_paper)
    )


def complete_order(
    rows: Rows, effect: RelabelEffect, direction: FloatArray, toward: float, order: InfluenceOrder
) -> InfluenceOrder:
    """The whole order of one prediction in float64, for a search that outruns the head."""
    response = rows.margins(direction * toward)
    gains = -effect.coefficient * response - effect.count * float(effect.shared @ direction) * toward
    positive = np.flatnonzero(gains > 0)
    ranked = positive[np.argsort(-gains[positive], kind="stable")]
    known = np.isin(ranked, order.index, assume_unique=True)
    index = np.concatenate([order.index, ranked[~known]])
    return InfluenceOrder(index, np.maximum(gains[index], 0.0), True, order.k_estimate, order.k_paper)
