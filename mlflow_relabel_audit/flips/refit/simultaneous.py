r"""Refitting with relabelled rows, many predictions at once, until each prediction's sign is proved.

Every prediction t of a block has its own relabelled set S_t and so its own objective F_S. All are minimised
together by preconditioned nonlinear conjugate gradients (Polak-Ribiere+, restarted where the direction is no
descent); the preconditioner is the factor of a reference Hessian, and the line search is Newton's on
``z + alpha X d``: one step, or several inside a bracket where the step is long. One iteration costs two products
of the training rows. The reference is H at the fitted point, shared by all; a column so far from there that it
converges slowly is given its own, taken where it stands (`RefitBlock.refresh`), after which the steps are nearly
Newton's.

When a sign is proved is told in `proof`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlflow_relabel_audit.curvature import Curvature, StationaryPoint
from mlflow_relabel_audit.curvature.sparse import FEW
from mlflow_relabel_audit.flips.refit import passes
from mlflow_relabel_audit.flips.refit.beside import KEEPING, Moment
from mlflow_relabel_audit.flips.refit.line_search import bracketed
from mlflow_relabel_audit.flips.refit.proof import Near, interval
from mlflow_relabel_audit.flips.refit.reference import (
    EXACT_NORMS,
    LEAST_KAPPA,
    SPECTRAL_LEVELS,
    largest_norm,
    spectral_bound,
)
from mlflow_relabel_audit.flips.refit.rows import Cells, Kept, OwnCells, RefitRows, Weighing, keeps
from mlflow_relabel_audit.flips.relabelling import RelabelEffect, Relabelling
from mlflow_relabel_audit.problem import FloatArray, IntArray, Problem
from mlflow_relabel_audit.rows import Join, Rows

LONG_STEP = 0.5
"""A move of some margin beyond which the line search looks again at where its Newton step leads."""
CONVERGED = 1e-18
"""Squared norm of a gradient that further descent cannot shrink."""


class RefitBlock:
    """Simultaneous refits for B predictions, each with its own relabelled rows.

    Parameters
    ----------
    problem, rows, point, effect
        the fitted objective.
    row_norms : ndarray of shape (n M,)
        ``||x_i||_{H^-1}`` of every row and output, or upper bounds.
    width : int
        the number of columns refitted at once; see `load`.
    keep : bool, optional
        whether what belongs to each row and column stays in memory between passes (`refit_rows.Kept`); by default
        where it is small and the rows are in this process.
    beside : bool
        whether the processes that hold the rows keep it there; where they do not, passes compute it anew.
    """

    def __init__(
        self,
        problem: Problem,
        rows: Rows,
        point: StationaryPoint,
        effect: RelabelEffect,
        row_norms: FloatArray,
        width: int,
        *,
        keep: bool | None = None,
        beside: bool = False,
    ) -> None:
        self.problem, self.rows, self.point, self.effect = problem, rows, point, effect
        self.products = 0.0
        self.refreshed = 0
        self._shared_norm_max = float(row_norms.max(initial=0.0))
        self._square_row_norms = row_norms**2
        self._leverage_scale = np.ones(width)
        self._total = float(rows.base_weight.sum())
        self._counts = problem.likelihood.counts(rows.base_weight, rows.y)
        p, precision = rows.p, np.float64 if rows.outputs > 1 else np.float32
        kept = keeps(rows, width) if keep is None else keep
        self._kept = Kept.empty(rows.n * rows.outputs, width, precision) if kept else None
        self._moment = Moment(width, live=beside and not kept)
        self._spared = kept or self._moment.live  # of products
        self.targets = np.zeros((p, width))
        self.u = np.zeros((p, width))
        self.theta = np.zeros((p, width))
        self.relabelled = [Relabelling.none()] * width
        self.gradient = np.zeros((p, width))
        self._direction = np.zeros((p, width))
        self._conditioned = np.zeros((p, width))
        self._solved = np.zeros((p, width))  # the gradient that it belongs to
        self._previous = np.zeros((p, width))
        self._own: list[Curvature | None] = [None] * width
        self._own_index: list[IntArray] = [np.zeros(0, dtype=np.int64)] * width
        self._own_weight: list[FloatArray] = [np.zeros(0)] * width
        self._norm_max = np.zeros(width)
        self._rho: FloatArray = np.zeros(width)  # r . H^-1 r of the direction's step; 0 restarts
        self._epsilon: FloatArray = np.zeros(width)  # ||r||_{H^-1} when it was last solved for
        self._stray: FloatArray = np.zeros(width)  # how far r can have moved from there, in that norm
        self._target_norm = np.zeros(width)
        self.kappa = np.ones(width)
        self._q = np.zeros(width)
        self._c = np.zeros(width)
        self._sets: Cells | None = None  # the relabelled cells of all columns, and their references' own weights
        self._references: Cells | None = None

    # -- filling and emptying columns -----------------------------------------------------------------------

    @property
    def holds(self) -> bool:
        """Whether what belongs to each row and column is kept between passes."""
        return self._kept is not None

    @property
    def width(self) -> int:
        """Columns held."""
        return self.theta.shape[1]

    def load(self, slots: IntArray, targets: FloatArray, u: FloatArray, response: FloatArray | None) -> None:
        """Start b predictions afresh in columns: at the fitted point, nothing relabelled; all at once, row by row.

        ``targets`` and ``u`` have shape (p, b); ``response``, shape (b, n), is an upper bound of ``|x_i . u|``, needed
        where it is kept between passes; those of several outputs are taken here.
        """
        self.targets[:, slots] = targets
        self.u[:, slots] = u
        if self._kept is not None:
            if self.rows.outputs > 1:
                self._kept.response[:, slots] = self.rows.margins(u)
                self.products += self.rows.outputs * len(slots)
            else:
                assert response is not None
                self._kept.response[:, slots] = response.T
            if self._kept.reference is not None:
                self._kept.reference[:, slots] = self.point.diagonal[:, None]
        for slot in slots:
            self._own[slot] = None
            self._own_index[slot], self._own_weight[slot] = np.zeros(0, dtype=np.int64), np.zeros(0)
        self._references = None
        self._leverage_scale[slots] = 1.0
        self._norm_max[slots] = self._shared_norm_max
        self._target_norm[slots] = np.sqrt(np.maximum(np.einsum("ij,ij->j", targets, u), 0.0))
        self.restart(slots)

    def restart(self, slots: IntArray) -> None:
        """Take columns back to the fitted point with nothing relabelled; their references stay."""
        self.theta[:, slots] = self.point.theta[:, None]
        if self._kept is not None:
            self._kept.z[:, slots] = self.point.margin[:, None]
        self.gradient[:, slots] = 0.0
        self._rho[slots] = self._epsilon[slots] = self._stray[slots] = self._q[slots] = 0.0
        self._conditioned[:, slots] = self._solved[:, slots] = 0.0
        self._c[slots] = self._target_norm[slots] ** 2
        self._moment.change(slots)
        for slot in slots:
            self.relabelled[slot] = Relabelling.none()
            # against an own reference nothing is known here yet
            self.kappa[slot] = 1.0 if self._own[slot] is None else 0.0
        self._sets = None

    def refresh(self, slot: int, count: int) -> None:
        """Give a column a reference of its own: H with the rows whose curvature changed most as they are now.

        The reference differs from H in ``count`` rows, so it costs ``count p^2 + p^3 / 3``; theta stays.

        Raises
        ------
        SingularHessianError
            The reference cannot be inverted: the column has run off to where rows carry no curvature.
        """
        rows, fitted, now = self.rows, self.point.diagonal, self._curvature_of(slot)
        count = min(count, rows.n)
        weight = (np.abs(now - fitted) * self._square_row_norms).reshape(rows.n, -1).sum(axis=1)
        chosen = np.sort(np.argpartition(-weight, count - 1)[:count])
        index = (chosen[:, None] * rows.outputs + np.arange(rows.outputs)).ravel()
        reference = fitted.copy()
        reference[index] = now[index]
        own = self.point.curvature.updated(rows, self.problem.penalty, reference, index, (now - fitted)[index])
        u = own.solve(self.targets[:, slot])
        response = rows.margins(u)
        self._own[slot], self.u[:, slot] = own, u
        self._moment.change(np.array([slot]))
        if self._kept is not None:
            if self._kept.reference is None:
                self._kept.reference = np.repeat(fitted[:, None], self.width, axis=1)
            self._kept.reference[:, slot] = reference
            # float32 may round down, a bound may not
            self._kept.response[:, slot] = response if rows.outputs > 1 else np.abs(response) * (1.0 + 2.0**-22)
        else:
            self._own_index[slot], self._own_weight[slot] = index, reference[index]
            self._references = None
        self._target_norm[slot] = math.sqrt(max(float(self.targets[:, slot] @ u), 0.0))
        below = spectral_bound(reference, fitted, self._square_row_norms)
        self._leverage_scale[slot] = 1.0 / below if below > LEAST_KAPPA else np.inf
        self._norm_max[slot] = largest_norm(
            rows, own, self._square_row_norms, below, rows.n if count == rows.n else EXACT_NORMS
        )
        self.kappa[slot] = spectral_bound(now, reference, self._square_row_norms, self._leverage_scale[slot])
        likelihood = self.problem.likelihood
        moved = likelihood.difference(reference[:, None], now[:, None], response[:, None])[:, 0]
        with np.errstate(over="ignore"):
            self._q[slot] = float(np.sum(moved**2 / np.maximum(now, np.finfo(float).tiny)))
        self._c[slot] = float(likelihood.product(now[:, None], response[:, None])[:, 0] @ response)
        self._rho[slot], self._stray[slot] = 0.0, np.inf
        self.products += 1
        self.refreshed += 1

    def keep(self, slots: IntArray) -> None:
        """Drop every column but ``slots``."""
        if self._kept is not None:
            self._kept.narrow(slots)
        self._moment.keep(slots)
        for name in ("targets", "u", "theta", "gradient", "_direction", "_conditioned", "_solved", "_previous"):
            setattr(self, name, np.ascontiguousarray(getattr(self, name)[:, slots]))
        for name in ("_rho", "_epsilon", "_stray", "_target_norm", "_norm_max", "_leverage_scale", "kappa", "_q", "_c"):
            setattr(self, name, getattr(self, name)[slots])
        self.relabelled = [self.relabelled[slot] for slot in slots]
        for name in ("_own", "_own_index", "_own_weight"):
            setattr(self, name, [getattr(self, name)[slot] for slot in slots])
        self._sets = self._references = None

    # -- the relabelled sets ---------------------------------------------------------------------------------

    def relabel(self, slots: IntArray, sets: list[Relabelling]) -> None:
        """Give columns new relabelled sets; the gradient follows, theta stays."""
        index: list[IntArray] = []
        output: list[IntArray | None] = []
        column: list[IntArray] = []
        amount: list[FloatArray] = []
        for slot, new in zip(slots, sets, strict=True):
            old = self.relabelled[slot]
            shared = min(len(old), len(new))
            # prefixes of one order: only the difference moves
            first = shared if old.begins(new) else 0
            for part, sign in ((old.beyond(first), -1.0), (new.beyond(first), 1.0)):
                if not len(part):
                    continue
                reach = self.effect.reach(part, self._square_row_norms)
                self._stray[slot] += reach * math.sqrt(self._leverage_scale[slot]) if reach else 0.0
                where, outputs, moved = self.effect.moves(part)
                index.append(where)
                output.append(outputs)
                column.append(np.full(len(where), slot))
                amount.append(sign * moved)
            self.relabelled[slot] = new
            self._rho[slot] = 0.0
        self._sets = None
        if self.effect.linear:
            if not index:  # from nothing to nothing
                return
            outputs = np.concatenate([each for each in output if each is not None]) if self.rows.outputs > 1 else None
            where = np.concatenate(index)
            self.gradient += self.rows.spread(
                where, np.concatenate(column), np.concatenate(amount), self.width, outputs
            )
            self.products += len(where) / self.rows.n
        else:
            self._evaluate(slots)

    def _class_weights(self) -> FloatArray:
        """Class weights under each column's relabelled set, shape (2, M, B) or (K, 1, B)."""
        counts = np.repeat(self._counts[:, None], self.width, axis=1)
        if self.problem.class_weight.balanced:
            counts += np.stack([self.effect.count_moves(part) for part in self.relabelled], axis=1)
        return self.problem.likelihood.class_weights(self.problem.class_weight, counts, self._total)

    # -- passes over the rows --------------------------------------------------------------------------------

    def _weighing(self) -> Weighing:
        return Weighing(self.problem.likelihood, self._class_weights(), self.problem.class_weight.balanced)

    def _cells_in(self, start: int, stop: int) -> tuple[OwnCells]:
        """What the rows ``start:stop`` are told: their relabelled cells, own references, what is kept."""
        if self._sets is None:
            labels = [part.label.astype(np.float64) for part in self.relabelled]
            self._sets = Cells.of([part.index for part in self.relabelled], labels)
        if self._references is None:
            self._references = Cells.of(self._own_index, self._own_weight)
        sets, references = self._sets, self._references
        first, last = start * self.rows.outputs, stop * self.rows.outputs
        kept = None if self._kept is None else self._kept.part(first, last)
        return (OwnCells(sets.part(start, stop), references.part(first, last), kept, self._moment.ticket(start)),)

    def _pass(self, work: passes.Pass, *arguments: Any, join: Join) -> tuple[Any, ...]:
        """One pass over the rows, which weigh and are labelled as each column has them."""
        by_line: tuple[FloatArray, ...] = (self.point.weight, self.point.diagonal, self._square_row_norms)
        if self.rows.outputs > 1:  # vectors themselves, not views of them, stay with the workers between passes
            by_line = tuple(part.reshape(self.rows.n, -1) for part in by_line)
        work = KEEPING[work] if self._moment.live else work
        found = self.rows.reduce(
            passes.over, work, self._weighing(), *arguments,
            join=join, along=(self.rows.y, self.rows.base_weight, *by_line), each=self._cells_in,
        )  # fmt: skip
        assert found is not None
        return found

    def _curvature_of(self, slot: int) -> FloatArray:
        """Curvature weights of one column where it stands, shape (n M,)."""
        rows, relabelled = self.rows, self.relabelled[slot]
        cells = Cells.of([relabelled.index], [relabelled.label.astype(np.float64)])
        only = RefitRows(
            rows.y, rows.base_weight, self.point.weight, self.point.diagonal, self._square_row_norms,
            self._weighing().among(np.array([slot])), cells, Cells.of([]), None,
        )  # fmt: skip
        if self._kept is not None:
            return only.curvature(self._kept.z[:, [slot]])[:, 0]
        self.products += 1
        return only.curvature(rows.margins(self.theta[:, [slot]]))[:, 0]

    def _evaluate(self, slots: IntArray | None = None, step: FloatArray | None = None) -> None:
        """One pass: move z by ``step`` times the image, then gradient, curvature weights and the proof's sums."""
        wide = self.rows.side_by_side
        self._moment.moves += step is not None
        gradient, q, c, short, least = self._pass(
            passes.evaluate, wide(self.theta), step, wide(self.u), join=passes.EVALUATED
        )
        gradient = self.rows.stacked(gradient) + self.problem.penalty[:, None] * self.theta
        changed = np.arange(self.width) if slots is None else slots
        with np.errstate(invalid="ignore"):  # 0 times inf: nothing is known by leverages
            levels = (np.asarray(SPECTRAL_LEVELS)[:, None] - short * self._leverage_scale).max(axis=0)
        kappa = np.fmax(np.minimum(least, 1.0), levels)
        self.gradient[:, changed] = gradient[:, changed]
        self._stray[changed] = np.inf
        self.kappa[changed], self._q[changed], self._c[changed] = kappa[changed], q[changed], c[changed]
        self.products += self.rows.outputs * len(changed) * (1 if self._spared else 3)

    # -- one iteration ---------------------------------------------------------------------------------------

    def condition(self, slots: IntArray) -> None:
        """Solve the cached factor with the gradients of ``slots``; `prove` and `descend` read the result."""
        slots = slots[self._stray[slots] > 0]
        shared = np.array([slot for slot in slots if self._own[slot] is None], dtype=np.intp)
        curvature = self.point.curvature
        near = shared[np.isfinite(self._stray[shared])]
        if curvature.sparse_quick and near.size:  # what a few sparse rows moved is solved for alone
            moved = self.gradient[:, near] - self._solved[:, near]
            few = FEW * np.count_nonzero(moved, axis=0) <= len(moved)
            if few.any():
                self._conditioned[:, near[few]] += curvature.solve(moved[:, few])
            shared = np.setdiff1d(shared, near[few], assume_unique=True)
        if shared.size:
            those = self._columns(shared)
            self._conditioned[:, those] = curvature.solve(np.ascontiguousarray(self.gradient[:, those]))
        for slot in slots:
            own = self._own[slot]
            if own is not None:
                self._conditioned[:, slot] = own.solve(self.gradient[:, slot])
        those = self._columns(slots)
        square = np.einsum("ij,ij->j", self.gradient[:, those], self._conditioned[:, those])
        self._epsilon[slots] = np.sqrt(np.maximum(square, 0.0))
        self._solved[:, those] = self.gradient[:, those]
        self._stray[slots] = 0.0

    def _columns(self, slots: IntArray) -> IntArray | slice:
        """Ascending slots as an index: all of them are no copy."""
        return slice(None) if len(slots) == self.width else slots

    def conditioned(self) -> FloatArray:
        """Whether each column's gradient is the one last solved for, shape (B,)."""
        return self._stray == 0.0

    def decrements(self) -> FloatArray:
        """``||gradient||^2`` under the references' inverses when last solved for, shape (B,)."""
        return self._epsilon**2

    def margins(self) -> FloatArray:
        """The margins at the present theta, shape (B,)."""
        return np.einsum("ij,ij->j", self.targets, self.theta) - self.problem.cut

    def prove(self) -> tuple[FloatArray, FloatArray]:
        """Margin after the refit, and a bound on the estimate's error (inf where none holds), each of shape (B,)."""
        here = self.margins()
        shift = np.einsum("ij,ij->j", self.u, self.gradient)
        root_q, root_c = (
            np.sqrt(np.maximum(part, 0.0)) for part in (self._q, self._c)
        )  # a sum of none may round below
        return interval(here, here - shift, self._target_norm, self._near(), root_q, root_c)

    def radii(self) -> FloatArray:
        """How far each column can be from its minimiser, in its reference's norm; inf where unknown."""
        return self._near().radius

    def _near(self) -> Near:
        # a relabelled row moves the gradient by a_i x_i, and its norm by |a_i| h_i at most
        return Near.of(self._epsilon + self._stray, self.kappa, self._norm_max)

    def reference(self, slot: int) -> Curvature:
        """The reference of a column."""
        return self._own[slot] or self.point.curvature

    def descend(self) -> None:
        """One iteration of nonlinear conjugate gradients in every column: two products."""
        rho = self.decrements()
        with np.errstate(divide="ignore", invalid="ignore"):
            overlap = np.einsum("ij,ij->j", self.gradient, self._previous)
            beta = np.where(self._rho > 0, np.maximum(rho - overlap, 0.0) / self._rho, 0.0)
        direction = beta * self._direction - self._conditioned
        slope = np.einsum("ij,ij->j", self.gradient, direction)
        uphill = slope >= 0
        direction[:, uphill] = -self._conditioned[:, uphill]
        slope[uphill] = -rho[uphill]
        self._direction, self._rho = direction, rho
        self._previous = self._conditioned.copy()
        step = self._line_search(direction, slope)
        self.theta += step * direction
        self._evaluate(step=step)

    def _line_search(self, direction: FloatArray, slope: FloatArray) -> FloatArray:
        """Newton on the objective along the direction; leaves ``X direction`` in the image."""
        bend_penalty = np.einsum("ij,ij->j", direction, self.problem.penalty[:, None] * direction)
        wide = self.rows.side_by_side
        bend, longest = self._pass(passes.bend, wide(self.theta), wide(direction), join=("sum", "max"))
        bend = bend + bend_penalty
        self.products += self.rows.outputs * self.width * (1 if self._spared else 2)
        step = np.divide(-slope, bend, out=np.zeros_like(slope), where=bend > 0)
        long = np.flatnonzero(step * longest > LONG_STEP)
        if long.size:
            step[long] = self._safeguard(direction[:, long], slope[long], step[long], bend_penalty[long], long)
        return step

    def _safeguard(
        self, direction: FloatArray, slope: FloatArray, step: FloatArray, bend_penalty: FloatArray, slots: IntArray
    ) -> FloatArray:
        """Steps of ``slots`` along their directions, looked at until the slope there is small."""
        slope_penalty = np.einsum("ij,ij->j", direction, self.problem.penalty[:, None] * self.theta[:, slots])
        theta, turned = self.rows.side_by_side(self.theta), self.rows.side_by_side(self._direction)

        def look(some: IntArray, at: FloatArray) -> tuple[FloatArray, FloatArray]:
            here, bend = self._pass(passes.slope, theta, turned, at, slots[some], join=("sum", "sum"))
            self.products += 0 if self._spared else 2 * self.rows.outputs * some.size
            return here + slope_penalty[some] + at * bend_penalty[some], bend + bend_penalty[some]

        return bracketed(look, step, slope)
