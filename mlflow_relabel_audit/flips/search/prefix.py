"""The verified search: the smallest prefix of an influence order whose refit flips the prediction.

For every prediction a bracket is kept: the largest k whose refit is proved not to flip it and the smallest whose
refit is proved to. While the refits of a block run, each column aims at the k where its own refitted margin
points, by a secant on the cumulative influence, long before it has converged; a sign proved for one k often
proves its neighbour for nothing, since relabelling one more row moves the gradient by one known vector.
The search ends where the bracket closes: k flips, k - 1 does not, both proved (see `refit.proof`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.errors import SingularHessianError
from mlflow_relabel_audit.flips import budget
from mlflow_relabel_audit.flips.order.influence import EstimateBlock, decided_heads
from mlflow_relabel_audit.flips.order.ranking import InfluenceOrder, longer_order
from mlflow_relabel_audit.flips.order.response import ResponseBounds
from mlflow_relabel_audit.flips.refit.rows import BYTES, columns_beside, keeps
from mlflow_relabel_audit.flips.refit.simultaneous import CONVERGED, RefitBlock
from mlflow_relabel_audit.flips.relabelling import RelabelEffect, Relabelling
from mlflow_relabel_audit.flips.search.bracket import Bracket
from mlflow_relabel_audit.flips.search.flip_set import NOT_FLIPPABLE, UNVERIFIED, VERIFIED, FlipSet
from mlflow_relabel_audit.problem import FloatArray, IntArray, Problem
from mlflow_relabel_audit.rows import Rows

MIN_WIDTH, MAX_WIDTH = 8, 128
MIN_DESCENTS = 4
MAX_DESCENTS = 60
PATIENCE = 0.67
"""Times the iterations that an own reference costs, without which it is done at first."""
MAX_REFRESHES = 20
REFERENCE_ENTRIES = 60_000
WIDENING = 8
"""How many times more rows every next reference of a column follows."""
AHEAD = 2
"""Share of the columns, as its inverse, whose responses are worked out at once."""
FREE_AIMS = 6
"""How often an unproved column may change its k before it has to settle the one it is at."""


@dataclass(frozen=True)
class SearchCost:
    """What a search spent.

    Attributes
    ----------
    products : float
        float64 products of the training rows with one vector.
    settled : int
        values of k whose sign was proved.
    refreshed : int
        own reference Hessians taken.
    """

    products: float
    settled: int
    refreshed: int


class VerifiedSearch:
    """Searches flip sets against one fitted objective.

    Parameters
    ----------
    problem, rows, point, effect
        the fitted objective.
    row_norms : ndarray of shape (n,)
        ``||x_i||_{H^-1}`` or upper bounds.
    width : int, optional
        predictions refitted at once; by default 8 to 128, as many as the budget has room for.
    """

    def __init__(
        self,
        problem: Problem,
        rows: Rows,
        point: StationaryPoint,
        effect: RelabelEffect,
        row_norms: FloatArray,
        width: int | None = None,
    ) -> None:
        self.problem, self.rows, self.point, self.effect = problem, rows, point, effect
        self._row_norms = row_norms
        self._square_norms = rows.square_norms()
        self._reach = effect.rounding_reach(np.sqrt(self._square_norms))
        room = budget.beside(rows, budget.REFITS, point.curvature.order)
        self.width = width or int(np.clip(room // (BYTES * max(rows.n * rows.outputs, 1)), MIN_WIDTH, MAX_WIDTH))
        self.keeps = keeps(rows, self.width)
        fits = columns_beside(rows)
        self.beside = not self.keeps and fits >= min(MIN_WIDTH, self.width)
        if not self.keeps and width is None:  # every pass serves all columns
            self.width = min(MAX_WIDTH, fits) if self.beside else MAX_WIDTH
        self.products, self.settled, self.refreshed = 0.0, 0, 0
        # rows an own reference follows, and the iterations (of 4 n p) it costs: do without until so many are spent
        self._followed = min(rows.n, max(rows.p, REFERENCE_ENTRIES // rows.p, rows.n // 8))
        spent = 2.0 * self._followed * rows.p**2 + rows.p**3 / 3.0
        self._patience = int(np.clip(PATIENCE * spent / (4.0 * max(rows.nnz, 1)), MIN_DESCENTS, MAX_DESCENTS))

    @property
    def cost(self) -> SearchCost:
        """Products and settled values of k so far."""
        return SearchCost(self.products, self.settled, self.refreshed)

    def refits(self, width: int) -> RefitBlock:
        """Columns to refit in."""
        fitted = (self.problem, self.rows, self.point, self.effect, self._row_norms)
        return RefitBlock(*fitted, width, keep=self.keeps, beside=self.beside)

    def run(
        self,
        block: EstimateBlock,
        orders: list[InfluenceOrder] | None = None,
        upper: list[int] | None = None,
        keep_theta: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> list[FlipSet]:
        """Search every prediction of a block.

        Parameters
        ----------
        block : EstimateBlock
        orders : list of InfluenceOrder, optional
            other orders to take prefixes of; by default the block's.
        upper : list of int, optional
            a size known to flip each prediction: only smaller sets are looked for (0: skip the prediction).
        keep_theta : bool
            keep the coefficients after each refit.
        progress : callable, optional
            called with the number of predictions finished since the last call.
        """
        orders = orders or block.orders
        width = min(self.width, len(orders))
        results: list[FlipSet | None] = [None] * len(orders)
        if not width:
            return []
        state = self.refits(width)
        pending = [t for t in range(len(orders)) if upper is None or upper[t] > 1]
        for t in set(range(len(orders))) - set(pending):
            results[t] = FlipSet.empty(UNVERIFIED)
        for t in [t for t in pending if not len(orders[t].change)]:  # no label pulls toward the flip
            results[t] = FlipSet.empty(NOT_FLIPPABLE)
            pending.remove(t)
        bounds = None
        if state.holds and self.rows.outputs == 1:
            bounds = ResponseBounds(self.rows, block.direction, self._square_norms, pending, max(width // AHEAD, 1))
        pending.reverse()
        columns: list[Bracket | None] = [None] * width

        bounded = upper is not None

        def collect() -> None:
            finished = 0
            for slot, column in enumerate(columns):
                status = None if column is None else self._status(column, bounded)
                if column is not None and status is not None:
                    results[column.t] = column.outcome(status, keep_theta)
                    columns[slot] = None
                    finished += 1
            if progress is not None and finished:
                progress(finished)

        def admit() -> None:
            """Fill free columns and settle the new ones; those that wait for a descent are left as they stand."""
            while (fresh := self._fill(state, columns, pending, block, orders, upper, bounds)).size:
                self._settle(state, columns, fresh, block, bounded)
                collect()

        admit()
        while (active := np.flatnonzero([column is not None for column in columns])).size:
            if 4 * len(active) <= 3 * len(columns):  # a column that is done costs as much as any other
                state.keep(active)
                columns = [columns[slot] for slot in active]
                active = np.arange(len(columns))
            state.descend()
            for slot in active:
                column = columns[slot]
                assert column is not None
                column.descents += 1
                if column.descents >= column.patience:
                    self._refresh(state, int(slot), column)
            collect()
            held = np.flatnonzero([column is not None for column in columns])
            self._settle(state, columns, held, block, bounded)
            collect()
            admit()
        self.products += state.products
        self.refreshed += state.refreshed
        return [result for result in results if result is not None]

    def _fill(
        self,
        state: RefitBlock,
        columns: list[Bracket | None],
        pending: list[int],
        block: EstimateBlock,
        orders: list[InfluenceOrder],
        upper: list[int] | None,
        bounds: ResponseBounds | None,
    ) -> IntArray:
        """Put waiting predictions into free columns; returns the slots that were filled."""
        fresh: list[int] = []
        sets: list[Relabelling] = []
        free = [slot for slot, held in enumerate(columns) if held is None][: len(pending)]
        asked = np.array([pending.pop() for _ in free], dtype=np.intp)
        heads = [orders[t] for t in asked]
        if orders is block.orders:
            heads = decided_heads(self.rows, self.effect, block, asked, self._reach)
        for place, (slot, t) in enumerate(zip(free, asked, strict=True)):
            column = Bracket(
                int(t),
                heads[place],
                block.margin[t],
                block.toward[t],
                None if upper is None else upper[t],
                self._patience,
                orders is block.orders,
            )
            columns[slot] = column
            self._goto(column, column.reach if upper is not None else column.aim(block.margin[t]), block)
            fresh.append(slot)
            sets.append(self._set(column))
        slots = np.asarray(fresh, dtype=np.intp)
        for some, bound in [(slice(None), None)] if bounds is None else bounds.next(len(slots)):
            state.load(slots[some], block.targets[:, asked[some]], block.direction[:, asked[some]], bound)
        if fresh:
            state.relabel(slots, sets)
        return slots

    def _goto(self, column: Bracket, k: int, block: EstimateBlock) -> None:
        """Move a column to k, inside its bracket, growing its order where k outruns it."""
        t, toward = column.t, float(block.toward[column.t])
        while column.grows and len(column.order.change) < (k if column.high is None else min(k, column.high - 1)):
            column.take(longer_order(self.rows, self.effect, block.direction[:, t], toward, column.order, self._reach))
            if column.high is None:
                break
        column.k = min(max(k, column.low + 1), max(column.reach, column.low + 1))

    def _settle(
        self,
        state: RefitBlock,
        columns: list[Bracket | None],
        slots: IntArray,
        block: EstimateBlock,
        bounded: bool,
    ) -> None:
        """Prove what can be proved where the columns stand, and let them aim anew, until none moves.

        A column that moves is judged first by how far its relabelled rows can have moved the gradient; the factor is
        solved with only where that neither proves a sign nor sends the column on.
        """
        state.condition(slots)
        while slots.size:
            estimate, error = state.prove()
            solved, decrement = state.conditioned(), state.decrements()
            moved: list[int] = []
            unsure: list[int] = []
            for slot in slots:
                column = columns[slot]
                assert column is not None
                before = column.k
                if abs(estimate[slot]) > error[slot]:
                    column.settle(estimate[slot], state.theta[:, slot].copy())
                    self.settled += 1
                    if self._status(column, bounded) is not None:
                        continue
                    self._goto(column, column.aim(estimate[slot]), block)
                elif solved[slot] and decrement[slot] <= CONVERGED:
                    column.patience = column.descents
                elif column.aims < FREE_AIMS:
                    self._goto(column, column.aim(estimate[slot]), block)
                    column.aims += column.k != before
                if column.k != before:
                    moved.append(int(slot))
                elif not solved[slot]:
                    unsure.append(int(slot))
            if moved:
                state.relabel(np.asarray(moved), [self._set(columns[slot]) for slot in moved])
            state.condition(np.asarray(unsure, dtype=np.intp))
            slots = np.asarray(sorted(moved + unsure), dtype=np.intp)

    def _refresh(self, state: RefitBlock, slot: int, column: Bracket) -> None:
        """Give a slow column its own reference Hessian; where it has none, try a smaller set from the start."""
        column.refreshes += 1
        column.patience = column.descents + min(2**column.refreshes, 4) * self._patience  # the next costs more
        if column.refreshes > MAX_REFRESHES:
            column.abandoned = True
            return
        try:
            state.refresh(slot, self._followed * WIDENING ** (column.refreshes - 1))
        except SingularHessianError:  # too many labels of one class: no finite minimiser there
            if column.k <= column.low + 1:
                column.abandoned = True
                return
            column.cap = column.k - 1
            column.k = (column.low + column.k) // 2
            state.restart(np.array([slot]))
            state.relabel(np.array([slot]), [self._set(column)])
            state.condition(np.array([slot]))

    @staticmethod
    def _set(column: Bracket | None) -> Relabelling:
        assert column is not None
        return column.order.change.first(column.k)

    @staticmethod
    def _status(column: Bracket, bounded: bool) -> str | None:
        """The final status of a column, None while it runs."""
        if column.closed:
            return VERIFIED if np.isfinite(column.margin_after) else UNVERIFIED
        if column.high is None and column.order.complete and column.low >= len(column.order.change):
            return NOT_FLIPPABLE
        if column.cap is not None and column.low >= column.reach:
            return UNVERIFIED
        if bounded and column.low >= column.reach:
            return UNVERIFIED
        return UNVERIFIED if column.abandoned else None
