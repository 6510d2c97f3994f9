"""The estimate pass: for every prediction, the training labels in the order of their influence.

One float32 product of a block of directions ``u_t = H^-1 x_t`` with the training rows gives every influence;
only the head of each order is kept, and grown where its sum falls short. Rows that are not one array in this
process rank their heads where they are (see `heads`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.curvature.stationary import sigmoid
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.flips.heads import (
    TINY,
    Apart,
    Held,
    Influences,
    floors,
    ordered,
    responses,
    stride_of,
)
from mlflow_relabel_audit.flips.relabelling import RelabelEffect
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import RowBlock, Rows

BUFFER_BYTES = 2**27
MAX_BLOCK, MIN_BLOCK = 256, 64
APART_BLOCK, APART_BYTES = 128, 2**17
"""Predictions in a pass over rows elsewhere, and what a block holds of each meanwhile."""
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
    index : ndarray of shape (K,)
        training rows, the one that moves the margin furthest toward the flip first; equal ones by position.
    influence : ndarray of shape (K,), float64
        how far each moves the margin toward the flip, all positive.
    floor : float
        every row whose float32 influence reaches it is in the head; the least positive one where the head is complete.
    k_estimate : int
        labels whose summed influence carries the margin to zero; 0 where even all of them do not.
    k_paper : int
        the same with the sum taken in probability, f (1 - f) g a label (Algorithm 1 of Yang, Xu and Yu, 2024).
    """

    index: IntArray
    influence: FloatArray
    floor: float
    k_estimate: int
    k_paper: int

    @property
    def complete(self) -> bool:
        """Whether every row with a positive influence is in the head."""
        return self.floor <= TINY


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
    response : ndarray of shape (B, n), float32, or None
        ``toward_t x_i . u_t``; valid until the next block is drawn, None where blocks were joined or the rows are not
        one array in this process (see `responses_of`).
    toward : ndarray of shape (B,)
        +1 where the margin has to rise for the flip, -1 where it has to fall.
    orders : list of InfluenceOrder
    """

    start: int
    stop: int
    rows: FloatArray = field(repr=False)
    margin: FloatArray
    direction: FloatArray = field(repr=False)
    response: FloatArray | None = field(repr=False)
    toward: FloatArray
    orders: list[InfluenceOrder] = field(repr=False)

    @classmethod
    def joined(cls, blocks: list[EstimateBlock]) -> EstimateBlock:
        """Blocks that follow one another as one; of several, the responses are gone."""
        if len(blocks) == 1:
            return blocks[0]
        return cls(
            blocks[0].start,
            blocks[-1].stop,
            np.concatenate([block.rows for block in blocks], axis=1),
            np.concatenate([block.margin for block in blocks]),
            np.concatenate([block.direction for block in blocks], axis=1),
            None,
            np.concatenate([block.toward for block in blocks]),
            [order for block in blocks for order in block.orders],
        )


def block_width(rows: Rows) -> int:
    """How many predictions share one pass.

    Over one array in this process their influences take half of the rows' memory, 16 to 128 MiB; over rows elsewhere
    no influence is kept, and under a memory limit a block's own take a quarter of what is left beside the rows.
    """
    if not rows.held:
        room = rows.store.room
        return APART_BLOCK if room is None else int(np.clip(room // (4 * APART_BYTES), 8, APART_BLOCK))
    most = min(BUFFER_BYTES, max(4 * rows.nnz, 4 * MIN_BLOCK * rows.n, BUFFER_BYTES // 8))
    return int(np.clip(most // (4 * max(rows.n, 1)), 1, MAX_BLOCK))


def _narrowed(direction: FloatArray) -> FloatArray:
    try:
        with np.errstate(over="raise"):
            return np.ascontiguousarray(direction, dtype=np.float32)
    except FloatingPointError as error:
        raise RequestError(
            f"influences: up to {np.abs(direction).max():.1e} per unit of a feature, beyond float32; scale the "
            "features (StandardScaler) or strengthen the penalty, and log that model"
        ) from error


def respond(rows: Rows, direction: FloatArray, out: FloatArray) -> FloatArray:
    """``direction' X'`` in float32: (p, B) into ``out`` of shape (B, n).

    Raises
    ------
    RequestError
        The directions do not fit float32.
    """
    return np.asarray(rows.collect(_respond, _narrowed(direction), out=out, axis=1))


def _respond(block: RowBlock, out: FloatArray, narrow: FloatArray) -> None:
    for _ in responses(block, narrow, out):
        pass


def responses_of(rows: Rows, block: EstimateBlock) -> Iterator[tuple[slice, FloatArray]]:
    """Yield a block's responses, a few predictions at a time where they have to be brought here, with their place."""
    if block.response is not None:
        yield slice(0, len(block.orders)), block.response
        return
    room = BUFFER_BYTES if rows.store.room is None else min(BUFFER_BYTES, rows.store.room // 4)
    width = int(np.clip(room // (4 * max(rows.n, 1)), 1, max(len(block.orders), 1)))
    buffer = np.empty((width, rows.n), dtype=np.float32)
    for start in range(0, len(block.orders), width):
        some = slice(start, min(start + width, len(block.orders)))
        direction = block.direction[:, some] * block.toward[some]
        yield some, respond(rows, direction, buffer[: some.stop - some.start])


def response_error(rows: Rows, direction: FloatArray, square_norms: FloatArray) -> tuple[FloatArray, FloatArray]:
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
    first: int = 0,
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
        predictions in a block; `block_width` by default.
    first : int
        the evaluation row to begin with.
    """
    width = min(width or block_width(rows), max(evaluation.n, 1))
    buffer = np.empty((width, rows.n), dtype=np.float32) if rows.held else None
    for start in range(first, evaluation.n, width):
        stop = min(start + width, evaluation.n)
        targets = evaluation.columns(np.arange(start, stop))
        margin = (point.theta[:, None] * targets).sum(axis=0) - cut  # the same whatever shares the block
        toward = np.where(margin > 0, -1.0, 1.0)
        direction = point.curvature.solve(targets)
        response = None if buffer is None else respond(rows, direction * toward, buffer[: stop - start])
        orders = rank_block(rows, effect, margin, direction * toward, response, cut)
        yield EstimateBlock(start, stop, targets, margin, direction, response, toward, orders)


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
    orders: list[InfluenceOrder] = []
    doubtful: list[bool] = []
    for some, source in _influences(rows, effect, direction, response):
        ranked, doubts = _rank(source, goal[some], goal_paper[some])
        orders += ranked
        doubtful += doubts
    again = np.flatnonzero(doubtful)
    heads = _ranked(rows, effect, direction[:, again], [np.sort(orders[t].index) for t in again])
    for t, (index, gains) in zip(again, heads, strict=True):
        orders[t] = _decided(orders[t], index, gains, goal[t], goal_paper[t])
    return orders


def _influences(
    rows: Rows, effect: RelabelEffect, direction: FloatArray, response: FloatArray | None
) -> Iterator[tuple[slice, Influences]]:
    """Yield the influences on predictions, a slice of them after the other: of an array, or of rows elsewhere."""
    coefficient = (-effect.coefficient).astype(np.float32)
    offset = _offset(effect, direction)
    balanced = bool(np.any(effect.shared))
    width = direction.shape[1]
    if response is None:
        count = effect.count.astype(np.float32) if balanced else None
        stride = stride_of(rows.n)
        sampled = rows.every(stride)
        narrow = _narrowed(direction)
        yield slice(0, width), Apart(rows, narrow, coefficient, count, offset.astype(np.float32), sampled, stride)
        return
    chunk = max(1, CHUNK_BYTES // (4 * rows.n))
    for start in range(0, width, chunk):
        some = slice(start, min(start + chunk, width))
        values = response[some] * coefficient
        if balanced:
            values += (offset[some, None] * effect.count).astype(np.float32)
        yield some, Held.of(values)


def _offset(effect: RelabelEffect, direction: FloatArray) -> FloatArray:
    """What a relabelling moves each margin toward the flip through the class counts, per count, shape (B,)."""
    return np.asarray(-(effect.shared @ direction))


def _rank(source: Influences, goal: FloatArray, goal_paper: FloatArray) -> tuple[list[InfluenceOrder], list[bool]]:
    """Rank the influences on each prediction; a head that falls short of its goals grows eightfold.

    Also tells which predictions' sums come so near to a goal that float32 may have decided.
    """
    n = source.n
    orders: dict[int, InfluenceOrder] = {}
    doubtful = np.zeros(len(goal), dtype=bool)
    need = 1.25 * goal
    wanted = np.maximum(need, np.where(goal_paper <= DEEP * goal, 1.05 * goal_paper, 0.0))
    pending = np.arange(len(goal))
    head = min(FIRST_HEAD, n)
    while pending.size:
        floor = floors(source, pending, wanted[pending], head)
        index, gains, counts = ordered(source.reaching(pending, floor), len(pending))
        total = np.cumsum(gains, axis=1)
        complete = floor <= TINY
        done = complete | (total[:, -1] >= need[pending]) if total.shape[1] else complete
        sizes = []
        for each in (goal[pending, None], goal_paper[pending, None]):
            crossed = (total <= each).sum(axis=1) + 1
            sizes.append(np.where(crossed <= counts, crossed, 0))
            doubtful[pending] |= (np.abs(total - each) <= CLOSE * each).any(axis=1)
        past = pending[done & ~complete & (sizes[1] == 0)]
        beyond = dict(zip(past.tolist(), source.depths(past, goal_paper[past]).tolist(), strict=True))
        for row in np.flatnonzero(done):
            t, count = int(pending[row]), int(counts[row])
            k_paper = beyond.get(t, int(sizes[1][row]))
            orders[t] = InfluenceOrder(
                index[row, :count].copy(), gains[row, :count].copy(), float(floor[row]), int(sizes[0][row]), k_paper
            )
        pending = pending[~done]
        head = min(GROWTH * head, n)
    return [orders[t] for t in range(len(goal))], doubtful.tolist()


def _crossing(total: FloatArray, goal: float) -> int:
    """First k whose cumulative influence passes the goal, 0 where none does."""
    k = int(np.searchsorted(total, goal, side="right")) + 1
    return k if k <= len(total) else 0


def _decided(
    order: InfluenceOrder, index: IntArray, gains: FloatArray, goal: float, goal_paper: float
) -> InfluenceOrder:
    """The sums of a head taken again from float64 influences."""
    total = np.cumsum(gains)
    k_paper = _crossing(total, goal_paper)
    if not k_paper and not order.complete:
        k_paper = order.k_paper
    return InfluenceOrder(index, gains, order.floor, _crossing(total, goal), k_paper)


def _ranked(
    rows: Rows, effect: RelabelEffect, direction: FloatArray, members: list[IntArray]
) -> list[tuple[IntArray, FloatArray]]:
    """Rank some rows (ascending) for each prediction, those whose influence is positive, from float64 products.

    Influences are rounded to float32 before they are compared: identical rows then tie, and ties go by position,
    however a product's own rounding falls.
    """
    if not members:
        return []
    offset = _offset(effect, direction)
    where, column = np.concatenate(members), np.repeat(np.arange(len(members)), [len(part) for part in members])
    response = rows.cells(where, column, direction)
    gains = (offset[column] * effect.count[where] - effect.coefficient[where] * response).astype(np.float32)
    out, start = [], 0
    for part in members:
        own = gains[start : start + len(part)]
        start += len(part)
        ranked = np.argsort(-own, kind="stable")
        ranked = ranked[own[ranked] > 0]
        out.append((part[ranked], own[ranked].astype(np.float64)))
    return out


def decided_heads(
    rows: Rows, effect: RelabelEffect, block: EstimateBlock, some: IntArray, reach: float
) -> list[InfluenceOrder]:
    """For each prediction of ``some`` the part of its head whose order does not hang on float32.

    It is ranked by float64 products, so that a prefix is the same set whatever predictions shared its block.
    ``reach`` is the largest ``|coefficient_i| ||x_i||``, which bounds the rounding of any row's float32 influence;
    members that near to the floor are left out, as others may belong before them.
    """
    toward = block.direction[:, some] * block.toward[some]
    return _sure(rows, effect, toward, [block.orders[t] for t in some], reach)


def longer_order(
    rows: Rows, effect: RelabelEffect, direction: FloatArray, toward: float, order: InfluenceOrder, reach: float
) -> InfluenceOrder:
    """A decided head of one prediction, eight times as long or complete, for a search that outruns the one it has."""
    column = (direction * toward)[:, None]
    response = respond(rows, column, np.empty((1, rows.n), dtype=np.float32)) if rows.held else None
    ((_, source),) = _influences(rows, effect, column, response)
    head, only, longer = max(len(order.index), FIRST_HEAD), np.zeros(1, dtype=np.intp), order
    while not longer.complete and len(longer.index) <= len(order.index):
        head = min(GROWTH * head, rows.n)
        floor = floors(source, only, np.zeros(1), head)
        index, gains, _ = ordered(source.reaching(only, floor), 1)
        longer = dataclasses.replace(order, index=index[0], influence=gains[0], floor=float(floor[0]))
        (longer,) = _sure(rows, effect, column, [longer], reach)
    return longer


def _sure(
    rows: Rows, effect: RelabelEffect, direction: FloatArray, orders: list[InfluenceOrder], reach: float
) -> list[InfluenceOrder]:
    scale, _ = response_error(rows, direction, np.zeros(0))
    error = scale * reach + 2.0**-22 * np.abs(_offset(effect, direction)) * float(np.abs(effect.count).max())
    heads = _ranked(rows, effect, direction, [np.sort(order.index) for order in orders])
    out = []
    for order, (index, gains), slack in zip(orders, heads, error, strict=True):
        sure = len(index) if order.complete else int(np.searchsorted(-gains, -(order.floor + slack)))
        out.append(dataclasses.replace(order, index=index[:sure], influence=gains[:sure]))
    return out
