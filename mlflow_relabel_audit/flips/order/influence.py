"""The estimate pass: for every prediction, the training labels in the order of their influence.

One float32 product of a block of directions ``u_t = H^-1 x_t`` with the training rows gives every influence
(`response`); only the head of each order is kept (`ranking`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.flips import budget
from mlflow_relabel_audit.flips.order.apart import shelved_width
from mlflow_relabel_audit.flips.order.asked import Asked, ask
from mlflow_relabel_audit.flips.order.ranking import InfluenceOrder, decided, rank_block
from mlflow_relabel_audit.flips.order.response import narrowed, respond, responded
from mlflow_relabel_audit.flips.relabelling import RelabelEffect
from mlflow_relabel_audit.likelihood import FloatArray, IntArray
from mlflow_relabel_audit.problem import Problem
from mlflow_relabel_audit.rows import Kept, Rows

MAX_BLOCK = 256
FEW_BLOCK, FEW_BYTES = 32, 2**26
"""Predictions that share a pass at least, up to so many bytes of influences: rows of few entries are soon read, and
fewer predictions leave a search nothing to fill its block with."""
APART_BLOCK, APART_BYTES = 128, 2**17
"""Predictions in a pass over rows elsewhere, and what a block holds of each meanwhile."""
SHELVED_BLOCK = 64
"""As many at least are asked about in passes of as many as the shelves of the rows' processes have room for."""


@dataclass(frozen=True)
class EstimateBlock:
    """What the estimate pass leaves behind for a block of B margins.

    Attributes
    ----------
    start, stop : int
        which evaluation rows.
    asked : Asked
        their margins.
    direction : ndarray of shape (p, B)
        u_t = H^-1 x_t.
    orders : list of InfluenceOrder
    """

    start: int
    stop: int
    asked: Asked
    direction: FloatArray = field(repr=False)
    orders: list[InfluenceOrder] = field(repr=False)

    @property
    def margin(self) -> FloatArray:
        """Of `asked`."""
        return self.asked.margin

    @property
    def toward(self) -> FloatArray:
        """Of `asked`."""
        return self.asked.toward

    @property
    def targets(self) -> FloatArray:
        """Of `asked`."""
        return self.asked.targets

    def only(self, chosen: IntArray) -> EstimateBlock:
        """Some of the margins."""
        orders = [self.orders[t] for t in chosen]
        return EstimateBlock(self.start, self.stop, self.asked.only(chosen), self.direction[:, chosen], orders)

    @classmethod
    def joined(cls, blocks: list[EstimateBlock]) -> EstimateBlock:
        """Blocks that follow one another as one."""
        if len(blocks) == 1:
            return blocks[0]
        return cls(
            blocks[0].start,
            blocks[-1].stop,
            Asked.joined([block.asked for block in blocks]),
            np.concatenate([block.direction for block in blocks], axis=1),
            [order for block in blocks for order in block.orders],
        )


def directions_of(rows: Rows) -> int:
    """Directions that stand for one prediction: of K > 2 classes every other one, in every output."""
    return rows.outputs * (rows.outputs - 1) if rows.outputs > 1 else 1


def block_width(rows: Rows, factor: int = 0) -> int:
    """How many predictions share one pass.

    Over one array in this process their influences take a share of it and of a factor of that order (`budget`). Over
    rows elsewhere they are as many as the processes that hold them can keep the influences of; where those are few, or
    the rows are read from disk, none are kept, and under a memory limit a block's own take a quarter of what is left
    beside the rows.
    """
    if not rows.held:
        room = rows.store.room
        width = APART_BLOCK if room is None else int(np.clip(room // (4 * APART_BYTES), 8, APART_BLOCK))
        shelved = shelved_width(rows)
        return max((min(shelved, MAX_BLOCK) if shelved >= SHELVED_BLOCK else width) // directions_of(rows), 1)
    few = min(4 * FEW_BLOCK * rows.n, FEW_BYTES)
    room = budget.beside(rows, budget.INFLUENCES, factor, max(few, budget.LEAST))
    return int(np.clip(room // (4 * max(rows.n, 1) * directions_of(rows)), 1, MAX_BLOCK))


def responses_of(rows: Rows, block: EstimateBlock) -> Iterator[tuple[slice, Kept]]:
    """Yield a block's responses, of a model of one output, a few predictions at a time, with their place.

    They are worked out where the rows are, and stay there to be passed along with them.
    """
    room = max(budget.beside(rows, budget.INFLUENCES), rows.store.beside // 4)
    width = int(np.clip(room // (4 * max(rows.n, 1)), 1, max(len(block.orders), 1)))
    for start in range(0, len(block.orders), width):
        some = slice(start, min(start + width, len(block.orders)))
        yield some, rows.keep(responded, narrowed(block.direction[:, some] * block.toward[some]))


def estimate(
    rows: Rows,
    point: StationaryPoint,
    effect: RelabelEffect,
    evaluation: Rows,
    problem: Problem,
    width: int | None = None,
    first: int = 0,
    want: int | None = None,
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
    problem : Problem
    width : int, optional
        predictions in a block; `block_width` by default.
    first : int
        the evaluation row to begin with.
    want : int, optional
        code of the class to flip to; any other one than the predicted by default.
    """
    width = min(width or block_width(rows, point.curvature.order), max(evaluation.n, 1))
    for start in range(first, evaluation.n, width):
        stop = min(start + width, evaluation.n)
        asked = ask(problem, evaluation, point, start, stop, want)
        yield order_block(rows, point, effect, problem, asked, start, stop)


def order_block(
    rows: Rows,
    point: StationaryPoint,
    effect: RelabelEffect,
    problem: Problem,
    asked: Asked,
    start: int = 0,
    stop: int = 1,
) -> EstimateBlock:
    """Rank the rows for margins of the evaluation rows ``start:stop``."""
    direction = point.curvature.solve(asked.targets)
    toward = direction * asked.toward
    response = respond(rows, toward) if rows.held else None
    orders = rank_block(rows, effect, asked.margin, toward, response, problem.cut)
    return EstimateBlock(start, stop, asked, direction, orders)


def decided_heads(
    rows: Rows, effect: RelabelEffect, block: EstimateBlock, some: IntArray, reach: float
) -> list[InfluenceOrder]:
    """For each prediction of ``some`` the part of its head whose order does not hang on float32.

    A prefix of it is the same set whatever predictions shared its block (see `ranking.decided`).
    """
    toward = block.direction[:, some] * block.toward[some]
    return decided(rows, effect, toward, [block.orders[t] for t in some], reach)
