"""What relabelling does to the training objective.

Labels enter the objective linearly: relabelling row i adds ``s_i (2 y_i - 1) z_i``, so the gradient moves by
``a_i x_i`` with ``a_i = s_i (2 y_i - 1)``. Where weights depend on labels (``class_weight``), relabelled row i
also changes its own weight, from ``b_i w[y_i]`` to ``b_i w[1 - y_i]``, and

    a_i = (2 y_i - 1) b_i [w_0 p_i + w_1 (1 - p_i)];

under ``"balanced"`` the class counts move too, which to first order adds ``b_i (2 y_i - 1) v`` with one shared
vector ``v = (w_1 / n_1) e_1 - (w_0 / n_0) e_0``, ``e_c = sum_{y_j = c} b_j (p_j - y_j) x_j``.

With K > 2 classes every relabelling has a new label too. To first order the move of the margin is then a difference
of two potentials of the row, ``g_i(y -> c) = b_i (q_ic - q_iy)``, with ``response_i`` a number for every output:
``q_ic = w_c (response_ic - p_i . response_i) + v_c . u_t`` under a softmax, and
``q_ic = [w_c1 (1 - p_ic) + w_c0 p_ic] response_ic + v_c . u_t`` for one class against the rest; ``v_c`` is zero unless
weights are balanced. The best new label of a row is the one of largest potential, whatever the present one is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.likelihood import FloatArray, IntArray, Likelihood
from mlflow_relabel_audit.problem import Problem
from mlflow_relabel_audit.rows import Rows


@dataclass(frozen=True)
class Relabelling:
    """Training rows and the classes they are given.

    Attributes
    ----------
    index : ndarray of shape (k,)
        rows, none twice.
    label : ndarray of shape (k,), int
        class codes.
    """

    index: IntArray
    label: IntArray

    @classmethod
    def none(cls) -> Relabelling:
        """Nothing relabelled."""
        return cls(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))

    @classmethod
    def of_two(cls, y: Any, index: IntArray) -> Relabelling:
        """Rows of labels 0 and 1 given the other one."""
        return cls(index, 1 - np.asarray(y)[index].astype(np.intp))

    def __len__(self) -> int:
        return len(self.index)

    def first(self, k: int) -> Relabelling:
        """The first k."""
        return Relabelling(self.index[:k], self.label[:k])

    def beyond(self, k: int) -> Relabelling:
        """All but the first k."""
        return Relabelling(self.index[k:], self.label[k:])

    def begins(self, other: Relabelling) -> bool:
        """Whether this and another agree as far as the shorter one goes."""
        k = min(len(self), len(other))
        return np.array_equal(self.index[:k], other.index[:k]) and np.array_equal(self.label[:k], other.label[:k])


@dataclass(frozen=True)
class Gain:
    """How far relabelling a row moves a margin to first order, and to which label; for rows wherever they are.

    Attributes
    ----------
    likelihood : Separate or Coupled
    by_class : ndarray of shape (2, M) or (K, 1)
        class weights at the present labels.
    linear : bool
        whether weights do not depend on labels.
    shifted : bool
        whether a change of class counts moves margins (balanced weights).
    """

    likelihood: Likelihood
    by_class: FloatArray = field(repr=False)
    linear: bool
    shifted: bool

    def best(self, along: Sequence[Any], response: FloatArray, shift: FloatArray) -> FloatArray:
        """Largest move of each margin by each row, shape (B, n), in the response's precision.

        Parameters
        ----------
        along : sequence of arrays of n rows
            of `RelabelEffect.along`.
        response : ndarray of shape (B, M, n)
            ``x_i . u`` of every output.
        shift : ndarray of shape (B,) or (B, K)
            of `RelabelEffect.shift`.
        """
        if self.likelihood.outputs == 1:
            moved = np.multiply(response[:, 0], along[0], out=np.empty(response[:, 0].shape, dtype=response.dtype))
            if self.shifted:
                moved += shift.astype(response.dtype)[:, None] * along[1]
            return moved
        potential, own = self._potentials(along, response, shift), np.asarray(along[1])
        place = np.arange(len(own))
        here = potential[:, own, place].copy()
        potential[:, own, place] = -np.inf
        return np.asarray((potential.max(axis=1) - here) * along[0])

    def labels(self, along: Sequence[Any], response: FloatArray, shift: FloatArray, own: IntArray) -> IntArray:
        """The label that makes each `best` move, shape (B, n); of two classes, the other one than ``own``."""
        if self.likelihood.outputs == 1:
            return np.broadcast_to(1 - own, (len(response), len(own)))
        potential = self._potentials(along, response, shift)
        potential[:, own, np.arange(len(own))] = -np.inf
        return np.asarray(potential.argmax(axis=1))

    def given(
        self, along: Sequence[Any], response: FloatArray, shift: FloatArray, own: IntArray, label: IntArray
    ) -> FloatArray:
        """Move of each margin by rows of labels ``own`` that are given others, shape (B, n)."""
        if self.likelihood.outputs == 1:
            return self.best(along, response, shift)
        potential, place = self._potentials(along, response, shift), np.arange(len(own))
        return np.asarray((potential[:, label, place] - potential[:, own, place]) * along[0])

    def _potentials(self, along: Sequence[Any], response: FloatArray, shift: FloatArray) -> FloatArray:
        """``q_ic`` of every class, shape (B, K, n), in the response's precision."""
        probability, weights = np.asarray(along[2]).T, self.by_class.astype(response.dtype)
        if self.likelihood.coupled:
            moved: FloatArray = response * weights
            if not self.linear:
                moved -= weights * (probability * response).sum(axis=1, keepdims=True)
        else:
            ones, zeros = weights[1, :, None], weights[0, :, None]
            moved = response * (ones + (zeros - ones) * probability)
        if self.shifted:
            moved += shift[..., None].astype(response.dtype)
        return moved


@dataclass(frozen=True)
class RelabelEffect:
    """First-order effect of every single relabelling at the fitted point.

    With two classes, relabelling row i moves the gradient by ``coefficient_i x_i + count_i shared``, and so the margin
    of x_t by ``g_i = -(coefficient_i response_i + count_i shared . u_t)`` with ``u_t = H^-1 x_t`` and
    ``response_i = x_i . u_t``.

    Attributes
    ----------
    coefficient : ndarray of shape (n,)
        with K > 2 classes, ``b_i`` times the largest class weight, which is exact where `linear`.
    count : ndarray of shape (n,)
        what the relabelling takes from the positive class's weighted count, ``b_i (2 y_i - 1)``; ``b_i`` for K > 2.
    shared : ndarray of shape (p,), or (p, K)
        zero unless class weights are balanced.
    linear : bool
        whether weights do not depend on labels, so that ``coefficient`` is exact at every theta.
    likelihood : Separate or Coupled
    label : ndarray of shape (n,), int
        present class codes.
    probability : ndarray of shape (n, M)
    by_class : ndarray of shape (2, M) or (K, 1)
        class weights at the present labels.
    """

    coefficient: FloatArray
    count: FloatArray
    shared: FloatArray
    linear: bool
    likelihood: Likelihood
    label: IntArray = field(repr=False)
    probability: FloatArray = field(repr=False)
    by_class: FloatArray = field(repr=False)

    @classmethod
    def at(cls, problem: Problem, rows: Rows, point: StationaryPoint) -> RelabelEffect:
        """Read the effects off the fitted point."""
        rule, likelihood = problem.class_weight, problem.likelihood
        base, y, total = rows.base_weight, rows.y, float(rows.base_weight.sum())
        counts = likelihood.counts(base, y)
        by_class = likelihood.class_weights(rule, counts, total)
        probability = point.probability.reshape(rows.n, -1)
        known = (rule.equal, likelihood, y.astype(np.intp), probability, by_class)
        if rows.outputs > 1:
            shared = np.zeros((rows.p, rows.outputs))
            if rule.balanced:
                shared = _shared(rows, likelihood, counts, probability, by_class, total)
            return cls(base * float(by_class.max()), base, shared, *known)
        only = by_class[:, 0]
        count = base * (2.0 * y - 1.0)
        mixed = only[0] * point.probability + only[1] * (1.0 - point.probability)
        alone: FloatArray = np.zeros(rows.p)
        if rule.balanced:
            positive = float(counts[0])
            error = base * (point.probability - y)
            alone = rows.pull(error * np.where(y > 0.5, only[1] / positive, -only[0] / (total - positive)))
        return cls(count * mixed, count, alone, *known)

    def among(self, index: IntArray) -> RelabelEffect:
        """The effects of the rows at ``index``."""
        return replace(
            self,
            coefficient=self.coefficient[index],
            count=self.count[index],
            label=self.label[index],
            probability=self.probability[index],
        )

    def shift(self, direction: FloatArray) -> FloatArray:
        """What a direction feels of the change of class counts, shape (B,), or (B, K) with K > 2 classes."""
        if self.shared.ndim == 1:
            return -(self.shared @ direction)
        return np.asarray((self.shared.T @ direction).T)

    def rounding_reach(self, norms: FloatArray) -> float:
        """Largest factor by which the rounding of a response, per unit of row norm, reaches an influence."""
        own = float((np.abs(self.coefficient) * norms).max(initial=0.0))
        return own if self.likelihood.outputs == 1 else own * (2.0 if self.linear else 4.0)

    @property
    def gain(self) -> Gain:
        """How influences come about, without the rows."""
        shifted = bool(np.any(self.shared))
        return Gain(self.likelihood, self.by_class, self.linear, shifted)

    def along(self, precision: type[np.floating[Any]]) -> tuple[FloatArray | IntArray, ...]:
        """What `gain` asks of each row."""
        if self.likelihood.outputs > 1:
            return self.count.astype(precision), self.label, self.probability.astype(precision)
        coefficient = (-self.coefficient).astype(precision)
        return (coefficient, self.count.astype(precision)) if np.any(self.shared) else (coefficient,)

    def moves(self, change: Relabelling) -> tuple[IntArray, IntArray | None, FloatArray]:
        """What a relabelling adds to the gradient where `linear`: rows, their outputs (None: the only one), amounts."""
        amount = self.coefficient[change.index]
        if self.likelihood.outputs == 1:
            return change.index, None, amount
        outputs = np.concatenate([self.label[change.index], change.label])
        return np.tile(change.index, 2), outputs, np.concatenate([amount, -amount])

    def reach(self, change: Relabelling, square_norms: FloatArray) -> float:
        """Bound of the gradient's move where `linear`, for squared row norms of shape (n M,)."""
        amount = np.abs(self.coefficient[change.index])
        if self.likelihood.outputs == 1:
            return float(amount @ np.sqrt(square_norms[change.index]))
        norms = np.sqrt(square_norms.reshape(-1, self.likelihood.outputs)[change.index])
        if self.likelihood.coupled:
            return float(amount @ norms[:, 0])
        place = np.arange(len(change))
        return float(amount @ (norms[place, self.label[change.index]] + norms[place, change.label]))

    def reaches(self, norms: FloatArray) -> FloatArray:
        """The most that one relabelling of each row moves the gradient where `linear`, for norms of shape (n M,)."""
        by_output, amount = norms.reshape(-1, self.likelihood.outputs), np.abs(self.coefficient)
        if self.likelihood.coupled or self.likelihood.outputs == 1:
            return amount * by_output[:, 0]
        place, others = np.arange(len(amount)), by_output.copy()
        others[place, self.label] = 0.0
        return amount * np.hypot(by_output[place, self.label], others.max(axis=1))

    def count_moves(self, change: Relabelling) -> FloatArray:
        """What a relabelling adds to the class counts of the likelihood."""
        if self.likelihood.outputs == 1:
            return np.array([-self.count[change.index].sum()])
        base, outputs = self.count[change.index], self.likelihood.outputs
        gained = np.bincount(change.label, weights=base, minlength=outputs)
        return np.asarray(gained - np.bincount(self.label[change.index], weights=base, minlength=outputs))


def _shared(
    rows: Rows,
    likelihood: Likelihood,
    counts: FloatArray,
    probability: FloatArray,
    by_class: FloatArray,
    total: float,
) -> FloatArray:
    """``v_c`` of every class, shape (p, K), of K > 2: what a class's count does to the gradient."""
    outputs = rows.outputs
    targets = likelihood.targets(rows.y).reshape(rows.n, outputs)
    error = rows.base_weight[:, None] * (probability - targets)
    if likelihood.coupled:
        scale = targets * (by_class[:, 0] / counts)
        return rows.pull((error[:, :, None] * scale[:, None, :]).reshape(rows.n * outputs, outputs))
    scale = np.where(targets > 0.5, by_class[1] / counts, -by_class[0] / (total - counts))
    stacked = rows.pull((error * scale).ravel()).reshape(outputs, -1)
    out = np.zeros((outputs, rows.coordinates, outputs))
    out[np.arange(outputs), :, np.arange(outputs)] = stacked
    return out.reshape(rows.p, outputs)
