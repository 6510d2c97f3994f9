"""The estimate pass: for every prediction, the training labels in the order of their influence.

One float32 product of a block of directions ``u_t = H^-1 x_t`` with the training rows gives every influence;
only the head of each order is kept, and grown where its sum falls short.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.flips.relabelling import RelabelEffect
from mlflow_relabel_audit.likelihood import sigmoid
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import RowBlock, Rows

BUFFER_BYTES = 2**27
MAX_BLOCK, MIN_BLOCK = 256, 64
FIRST_HEAD = 32
SAMPLE = 512
DEEP = 3.0
"""The paper's goal beyond so many times the margin's is not ranked for, only counted."""
TINY = float(np.finfo(np.float32).tiny)
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
    response : ndarray of shape (B, n), float32
        ``toward_t x_i . u_t``; valid until the next block is drawn, None where blocks were joined.
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
    """How many predictions share one pass: their influences take half of the rows' memory, 16 to 128 MiB.

    Under a memory limit they take a quarter of what is left beside the rows, too.
    """
    most = min(BUFFER_BYTES, max(4 * rows.nnz, 4 * MIN_BLOCK * rows.n, BUFFER_BYTES // 8))
    if rows.store.room is not None:
        most = min(most, rows.store.room // 4)
    return int(np.clip(most // (4 * max(rows.n, 1)), 1, MAX_BLOCK))


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
            f"influences: up to {np.abs(direction).max():.1e} per unit of a feature, beyond float32; scale the "
            "features (StandardScaler) or strengthen the penalty, and log that model"
        ) from error
    return np.asarray(rows.collect(_respond, narrow, out=out, axis=1))


def _respond(block: RowBlock, out: FloatArray, narrow: FloatArray) -> None:
    length = max(block.piece_length(), 2048)
    if block.sparse:
        for within, piece in block.pieces(length, np.float32):
            out[:, within] = piece.margins(narrow).T
        return
    turned = np.ascontiguousarray(narrow.T)
    scratch = np.ones((min(length, block.rows), block.p), dtype=np.float32)
    for within, piece in block.pieces(length, None):
        dense = scratch[: within.stop - within.start]
        dense[:, : piece.features.shape[1]] = piece.features
        np.matmul(turned, dense.T, out=out[:, within])


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
    buffer = np.empty((width, rows.n), dtype=np.float32)
    for start in range(first, evaluation.n, width):
        stop = min(start + width, evaluation.n)
        targets = evaluation.columns(np.arange(start, stop))
        margin = (point.theta[:, None] * targets).sum(axis=0) - cut  # the same whatever shares the block
        toward = np.where(margin > 0, -1.0, 1.0)
        direction = point.curvature.solve(targets)
        response = respond(rows, direction * toward, buffer[: stop - start])
        orders = rank_block(rows, effect, margin, direction * toward, response, cut)
        yield EstimateBlock(start, stop, targets, margin, direction, response, toward, orders)


def rank_block(
    rows: Rows,
    effect: RelabelEffect,
    margin: FloatArray,
    direction: FloatArray,
    response: FloatArray,
    cut: float,
) -> list[InfluenceOrder]:
    """Rank the rows for each prediction of a block, from ``response = direction' X'`` toward the flip."""
    goal = np.abs(margin)
    probability, threshold = sigmoid(margin + cut), float(sigmoid(np.asarray(cut)))
    spread = probability * sigmoid(-margin - cut)
    goal_paper = np.abs(probability - threshold) / np.maximum(spread, 1e-300)
    coefficient = (-effect.coefficient).astype(np.float32)
    shift = -(effect.shared @ direction)
    balanced = bool(np.any(effect.shared))
    chunk = max(1, CHUNK_BYTES // (4 * rows.n))
    orders: list[InfluenceOrder] = []
    doubtful: list[bool] = []
    for start in range(0, len(margin), chunk):
        some = slice(start, start + chunk)
        influence = response[some] * coefficient
        if balanced:
            influence += (shift[some, None] * effect.count).astype(np.float32)
        ranked, doubts = _rank_chunk(influence, goal[some], goal_paper[some])
        orders += ranked
        doubtful += doubts
    for t in np.flatnonzero(doubtful):
        orders[t] = _decide(rows, effect, orders[t], direction[:, t], shift[t], goal[t], goal_paper[t])
    return orders


def _rank_chunk(
    influence: FloatArray, goal: FloatArray, goal_paper: FloatArray
) -> tuple[list[InfluenceOrder], list[bool]]:
    """Rank each row of float32 influences, shape (C, n); a head that falls short of its goals grows eightfold.

    Also tells which rows' sums come so near to a goal that float32 may have decided.
    """
    n = influence.shape[1]
    orders: dict[int, InfluenceOrder] = {}
    doubtful = np.zeros(len(goal), dtype=bool)
    need = 1.25 * goal
    wanted = np.maximum(need, np.where(goal_paper <= DEEP * goal, 1.05 * goal_paper, 0.0))
    pending = np.arange(len(goal))
    head = min(FIRST_HEAD, n)
    while pending.size:
        values = influence if len(pending) == len(influence) else influence[pending]
        floor = _floor(values, wanted[pending], head)
        index, gains, counts = _heads(values, floor)
        total = np.cumsum(gains, axis=1)
        complete = floor <= TINY
        done = complete | (total[:, -1] >= need[pending]) if total.shape[1] else complete
        sizes = []
        for each in (goal[pending, None], goal_paper[pending, None]):
            crossed = (total <= each).sum(axis=1) + 1
            sizes.append(np.where(crossed <= counts, crossed, 0))
            doubtful[pending] |= (np.abs(total - each) <= CLOSE * each).any(axis=1)
        past = pending[done & ~complete & (sizes[1] == 0)]
        beyond = dict(zip(past.tolist(), _counts(influence[past], goal_paper[past]), strict=True))
        for row in np.flatnonzero(done):
            t, count = int(pending[row]), int(counts[row])
            k_paper = beyond.get(t, int(sizes[1][row]))
            orders[t] = InfluenceOrder(
                index[row, :count], gains[row, :count], float(floor[row]), int(sizes[0][row]), k_paper
            )
        pending = pending[~done]
        head = min(8 * head, n)
    return [orders[t] for t in range(len(goal))], doubtful.tolist()


def _counts(influence: FloatArray, goal: FloatArray) -> list[int]:
    """How many of each row's largest influences add up beyond a goal past the head, 0 where all do not."""
    if not len(influence):
        return []
    reachable = 1.001 * np.maximum(influence, 0.0).sum(axis=1)
    floor = _floor(influence, goal, 1)
    found = []
    for row, wanted, least, most in zip(influence, goal, floor, reachable, strict=True):
        k = 0
        if most > wanted:
            k = _depth(row, float(wanted), float(least)) or _depth(row, float(wanted), TINY)
        found.append(k)
    return found


def _depth(influence: FloatArray, goal: float, floor: float) -> int:
    """How many of the largest influences add up beyond a goal, 0 where all that reach ``floor`` do not.

    Values are binned by eighths of octaves; only the bin in which the sum crosses is sorted.
    """
    values = influence[influence >= floor]
    level = values.view(np.uint32) >> np.uint32(20)
    before = np.cumsum(np.bincount(level, weights=values, minlength=1)[::-1])
    place = int(np.searchsorted(before, goal, side="right"))
    if place == len(before):
        return 0
    there = len(before) - 1 - place
    above = float(before[place - 1]) if place else 0.0
    inside = np.cumsum(-np.sort(-values[level == there]), dtype=np.float64)[:-1] + above
    return int(np.count_nonzero(level > there)) + int(np.searchsorted(inside, goal, side="right")) + 1


def _floor(values: FloatArray, need: FloatArray, head: int) -> FloatArray:
    """A value such that the entries that reach it add up to about ``need``, and are about ``head`` at least.

    Read off a sorted sample of each row; the least positive float where the sample does not reach. Any floor gives
    an exact head of the order, whatever its length; a full selection would cost as much as the product.
    """
    n = values.shape[1]
    stride = max(1, n // SAMPLE)
    sample = -np.sort(-values[:, ::stride], axis=1)
    size = sample.shape[1]
    total = np.cumsum(sample, axis=1) * np.float32(stride)
    rank = np.maximum((total < 1.15 * need[:, None]).sum(axis=1) + 2, -(-head * size // n))
    found = np.take_along_axis(sample, np.minimum(rank, size - 1)[:, None], axis=1)[:, 0]
    return np.where(rank < size, np.maximum(found, TINY), TINY)


def _heads(values: FloatArray, floor: FloatArray) -> tuple[IntArray, FloatArray, IntArray]:
    """Entries of each row that reach its floor, largest first.

    Returns indices and float64 values, shape (C, longest), padded with zeros, and how many there are in each row.
    Sorting (inverted bits of a positive float32, index) as one 64-bit number ranks equal values by position.
    """
    n = values.shape[1]
    inside = values >= floor[:, None]
    counts = inside.sum(axis=1)
    flat = np.flatnonzero(inside)
    who, index = np.divmod(flat, n)
    inverted = ~np.ravel(values)[flat].view(np.uint32)
    keys = np.full((len(values), int(counts.max(initial=0))), np.iinfo(np.uint64).max)
    place = np.arange(len(who)) - np.repeat(np.cumsum(counts) - counts, counts)
    keys[who, place] = (inverted.astype(np.uint64) << np.uint64(32)) | index.astype(np.uint64)
    keys.sort(axis=1)
    gains = (~(keys >> np.uint64(32)).astype(np.uint32)).view(np.float32).astype(np.float64)
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64), gains, counts


def _crossing(total: FloatArray, goal: float) -> int:
    """First k whose cumulative influence passes the goal, 0 where none does."""
    k = int(np.searchsorted(total, goal, side="right")) + 1
    return k if k <= len(total) else 0


def _decide(
    rows: Rows,
    effect: RelabelEffect,
    order: InfluenceOrder,
    direction: FloatArray,
    shift: float,
    goal: float,
    goal_paper: float,
) -> InfluenceOrder:
    """Take the head's sums again from float64 influences."""
    index, gains = _ranked(rows, effect, direction, shift, np.sort(order.index))
    total = np.cumsum(gains)
    k_paper = _crossing(total, goal_paper)
    if not k_paper and not order.complete:
        k_paper = order.k_paper
    return InfluenceOrder(index, gains, order.floor, _crossing(total, goal), k_paper)


def _ranked(
    rows: Rows, effect: RelabelEffect, direction: FloatArray, shift: float, index: IntArray | None = None
) -> tuple[IntArray, FloatArray]:
    """Rank rows, all by default, whose influence is positive, from float64 products.

    Influences are rounded to float32 before they are compared: identical rows then tie, and ties go by position,
    however a product's own rounding falls.
    """
    if index is None:
        index, response = np.arange(rows.n), rows.margins(direction)
    else:
        response = np.asarray(rows.take(index) @ direction).ravel()
    gains = (shift * effect.count[index] - effect.coefficient[index] * response).astype(np.float32)
    ranked = np.argsort(-gains, kind="stable")
    ranked = ranked[gains[ranked] > 0]
    return index[ranked], gains[ranked].astype(np.float64)


def decided_head(
    rows: Rows, effect: RelabelEffect, direction: FloatArray, toward: float, order: InfluenceOrder, error: float
) -> InfluenceOrder:
    """The part of a head whose order does not hang on float32, ranked by float64 products.

    A prefix of the order is then the same set whatever predictions shared its block. ``error`` bounds the rounding
    of any row's float32 influence; members within it of the floor are left out, as others may belong before them.
    """
    shift = -toward * float(effect.shared @ direction)
    index, gains = _ranked(rows, effect, direction * toward, shift, np.sort(order.index))
    if not order.complete:
        error += 2.0**-22 * abs(shift) * float(np.abs(effect.count).max())
        sure = int(np.searchsorted(-gains, -(order.floor + error)))
        index, gains = index[:sure], gains[:sure]
    return dataclasses.replace(order, index=index, influence=gains)


def complete_order(
    rows: Rows, effect: RelabelEffect, direction: FloatArray, toward: float, order: InfluenceOrder
) -> InfluenceOrder:
    """The whole order of one prediction, for a search that outruns the head."""
    shift = -toward * float(effect.shared @ direction)
    index, gains = _ranked(rows, effect, direction * toward, shift)
    known = np.isin(index, order.index, assume_unique=True)
    index = np.concatenate([order.index, index[~known]])
    return dataclasses.replace(
        order, index=index, influence=np.concatenate([order.influence, gains[~known]]), floor=float(TINY)
    )
