"""Orders of the training rows by influence: heads of them, ranked in float32 and decided in float64.

A head is grown where its sum falls short. Rows that are not one array in this process rank their heads where they are
(see `apart`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlflow_relabel_audit.flips.order.apart import Apart
from mlflow_relabel_audit.flips.order.heads import TINY, Held, Influences, floors, ordered
from mlflow_relabel_audit.flips.order.response import narrowed, respond, response_scale
from mlflow_relabel_audit.flips.relabelling import RelabelEffect, Relabelling
from mlflow_relabel_audit.likelihood import FloatArray, IntArray, sigmoid
from mlflow_relabel_audit.rows import Rows

FIRST_HEAD = 32
GROWTH = 8
DEEP = 3.0
"""The paper's goal beyond so many times the margin's is not ranked for, only counted."""
CHUNK_BYTES = 2**20
CLOSE = 1e-5
"""Where a cumulative float32 influence is this near to its target, the sum is taken again in float64."""


@dataclass(frozen=True)
class InfluenceOrder:
    """The head of one prediction's influence order.

    Attributes
    ----------
    change : Relabelling
        K training rows with their new labels, the one that moves the margin furthest toward the flip first; equal ones
        by position.
    influence : ndarray of shape (K,), float64
        how far each moves the margin toward the flip, all positive.
    floor : float
        every row whose float32 influence reaches it is in the head; the least positive one where the head is complete.
    k_estimate : int
        labels whose summed influence carries the margin to zero; 0 where even all of them do not.
    k_paper : int
        the same with the sum taken in probability, f (1 - f) g a label (Algorithm 1 of Yang, Xu and Yu, 2024).
    """

    change: Relabelling
    influence: FloatArray
    floor: float
    k_estimate: int
    k_paper: int

    @property
    def index(self) -> IntArray:
        """The training rows, shape (K,)."""
        return self.change.index

    @property
    def complete(self) -> bool:
        """Whether every row with a positive influence is in the head."""
        return self.floor <= TINY


def rank_block(
    rows: Rows,
    effect: RelabelEffect,
    margin: FloatArray,
    direction: FloatArray,
    response: FloatArray | None,
    cut: float,
) -> list[InfluenceOrder]:
    """Rank the rows for each prediction of a block, by ``response = direction' X'`` toward the flip.

    Without the response the blocks of rows work it out and rank it where they are.
    """
    goal = np.abs(margin)
    probability, threshold = sigmoid(margin + cut), float(sigmoid(np.asarray(cut)))
    spread = probability * sigmoid(-margin - cut)
    goal_paper = np.abs(probability - threshold) / np.maximum(spread, 1e-300)
    if rows.outputs > 1:  # published for two classes only
        goal_paper = goal
    orders: list[InfluenceOrder] = []
    doubtful: list[bool] = []
    for some, source in _influences(rows, effect, direction, response):
        ranked, doubts = _rank(source, effect, goal[some], goal_paper[some])
        orders += ranked
        doubtful += doubts
    again = np.flatnonzero(doubtful) if rows.outputs == 1 else np.arange(len(orders))  # which then have their labels
    heads = _ranked(rows, effect, direction[:, again], [np.sort(orders[t].index) for t in again])
    for t, (change, gains) in zip(again, heads, strict=True):
        orders[t] = _resummed(orders[t], change, gains, goal[t], goal_paper[t])
    return orders if rows.outputs == 1 else [dataclasses.replace(order, k_paper=0) for order in orders]


def _influences(
    rows: Rows, effect: RelabelEffect, direction: FloatArray, response: FloatArray | None
) -> Iterator[tuple[slice, Influences]]:
    """Yield the influences on predictions, a slice of them after the other: of an array, or of rows elsewhere."""
    width, shift = direction.shape[1], effect.shift(direction)
    if response is None:
        narrow = narrowed(rows.side_by_side(direction)).reshape(rows.coordinates, rows.outputs, width)
        yield slice(0, width), Apart(rows, effect, narrow, shift)
        return
    chunk = max(1, CHUNK_BYTES // (4 * rows.n * rows.outputs))
    gain, along = effect.gain, effect.along(np.float32)
    for start in range(0, width, chunk):
        some = slice(start, min(start + chunk, width))
        yield some, Held.of(gain.best(along, response[some], shift[some]))


def _rank(
    source: Influences, effect: RelabelEffect, goal: FloatArray, goal_paper: FloatArray
) -> tuple[list[InfluenceOrder], list[bool]]:
    """Rank the influences on each prediction; a head that falls short of its goals grows eightfold.

    Also tells which predictions' sums come so near to a goal that float32 may have decided.
    """
    n = source.n
    orders: dict[int, InfluenceOrder] = {}
    doubtful = np.zeros(len(goal), dtype=bool)
    need = 1.25 * goal
    within = goal_paper <= DEEP * goal
    wanted = np.maximum(need, np.where(within, 1.05 * goal_paper, 0.0))
    beyond = np.where(within, 0.0, goal_paper)
    pending = np.arange(len(goal))
    head = min(FIRST_HEAD, n)
    near = np.stack([goal, goal_paper], axis=1)[:, :, None] * [1.0 - CLOSE, 1.0, 1.0 + CLOSE]
    while pending.size:
        floor = floors(source, pending, wanted[pending], head)
        found = ordered(source.reaching(pending, floor, beyond[pending]), len(pending), effect.label)
        short: list[int] = []
        past: list[int] = []
        for t, least, (change, gains) in zip(pending.tolist(), floor.tolist(), found, strict=True):
            total = np.cumsum(gains)
            reached = float(total[-1]) if len(total) else 0.0
            below, k, above, below_paper, k_paper, above_paper = total.searchsorted(near[t].ravel(), "right").tolist()
            doubtful[t] |= below < above or below_paper < above_paper
            if least > TINY and reached < need[t]:
                wanted[t] *= np.clip(1.5 * need[t] / max(reached, TINY), 1.0, GROWTH)
                short.append(t)
                continue
            k, k_paper = ((place + 1) * (place < len(total)) for place in (k, k_paper))
            orders[t] = InfluenceOrder(change, gains, least, k, k_paper)
            if least > TINY and not k_paper:
                past.append(t)
        depths = source.depths(np.asarray(past, dtype=np.intp), goal_paper[past])
        for t, depth in zip(past, depths.tolist(), strict=True):
            orders[t] = dataclasses.replace(orders[t], k_paper=depth)
        beyond[pending] = 0.0
        pending = np.asarray(short, dtype=np.intp)
        head = min(GROWTH * head, n)
    return [orders[t] for t in range(len(goal))], doubtful.tolist()


def _crossing(total: FloatArray, goal: float) -> int:
    """First k whose cumulative influence passes the goal, 0 where none does."""
    k = int(np.searchsorted(total, goal, side="right")) + 1
    return k if k <= len(total) else 0


def _resummed(
    order: InfluenceOrder, change: Relabelling, gains: FloatArray, goal: float, goal_paper: float
) -> InfluenceOrder:
    """The sums of a head taken again from float64 influences."""
    total = np.cumsum(gains)
    k_paper = _crossing(total, goal_paper)
    if not k_paper and not order.complete:
        k_paper = order.k_paper
    return InfluenceOrder(change, gains, order.floor, _crossing(total, goal), k_paper)


def _ranked(
    rows: Rows, effect: RelabelEffect, direction: FloatArray, members: list[IntArray]
) -> list[tuple[Relabelling, FloatArray]]:
    """Rank some rows (ascending) for each prediction, those whose influence is positive, from float64 products.

    Influences are rounded to float32 before they are compared: identical rows then tie, and ties go by position,
    however a product's own rounding falls.
    """
    if not members:
        return []
    shift = effect.shift(direction)
    where, column = np.concatenate(members), np.repeat(np.arange(len(members)), [len(part) for part in members])
    outputs, width = rows.outputs, len(members)
    across = (np.arange(outputs)[:, None] * width + column).ravel()
    response = rows.cells(np.tile(where, outputs), across, rows.side_by_side(direction)).reshape(outputs, -1)
    out, start = [], 0
    for t, part in enumerate(members):
        few, own = effect.among(part), response[None, :, start : start + len(part)]
        start += len(part)
        along, moved = few.along(np.float64), shift[t : t + 1]
        label = effect.gain.labels(along, own, moved, few.label)[0]
        gains = effect.gain.best(along, own, moved)[0].astype(np.float32)
        ranked = np.argsort(-gains, kind="stable")
        ranked = ranked[gains[ranked] > 0]
        out.append((Relabelling(part[ranked], label[ranked]), gains[ranked].astype(np.float64)))
    return out


def longer_order(
    rows: Rows, effect: RelabelEffect, direction: FloatArray, toward: float, order: InfluenceOrder, reach: float
) -> InfluenceOrder:
    """A decided head of one prediction, eight times as long or complete, for a search that outruns the one it has."""
    column = (direction * toward)[:, None]
    response = respond(rows, column) if rows.held else None
    ((_, source),) = _influences(rows, effect, column, response)
    head, only, longer = max(len(order.index), FIRST_HEAD), np.zeros(1, dtype=np.intp), order
    while not longer.complete and len(longer.index) <= len(order.index):
        head = min(GROWTH * head, rows.n)
        floor = floors(source, only, np.zeros(1), head)
        ((change, gains),) = ordered(source.reaching(only, floor, np.zeros(1)), 1, effect.label)
        longer = dataclasses.replace(order, change=change, influence=gains, floor=float(floor[0]))
        (longer,) = decided(rows, effect, column, [longer], reach)
    return longer


def decided(
    rows: Rows, effect: RelabelEffect, direction: FloatArray, orders: list[InfluenceOrder], reach: float
) -> list[InfluenceOrder]:
    """The part of each head whose order does not hang on float32, ranked by float64 products.

    ``reach`` is the largest ``|coefficient_i| ||x_i||``, which bounds the rounding of any row's float32 influence;
    members that near to the floor are left out, as others may belong before them.
    """
    scale = response_scale(rows, direction)
    shift = np.abs(effect.shift(direction))
    if shift.ndim > 1:
        shift = 2.0 * shift.max(axis=1)
    error = scale * reach + 2.0**-22 * shift * float(np.abs(effect.count).max())
    heads = _ranked(rows, effect, direction, [np.sort(order.index) for order in orders])
    out = []
    for order, (change, gains), slack in zip(orders, heads, error, strict=True):
        sure = len(change) if order.complete else int(np.searchsorted(-gains, -(order.floor + slack)))
        out.append(dataclasses.replace(order, change=change.first(sure), influence=gains[:sure]))
    return out
