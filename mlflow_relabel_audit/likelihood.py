"""How the outputs of a row, ``x_i . theta_m`` for each of M, become the probabilities of its classes.

Two classes have one output; K classes have K. Either every output is a logistic model of its own (`Separate`: two
classes, and one against the rest) or all of a row share one softmax (`Coupled`). What differs between the two is
here and nowhere else: the probabilities, the loss, and the curvature it gives a row, which is a number per output
in the first case and ``W(c) = diag(c) - c c' / sum(c)``, with ``c_m = s_i p_m``, in the second.

Values of rows and outputs are flat, shape (n M,) or (n M, B), the outputs of one row side by side; with one output
that is a value per row.

Both forms of W are monotone and homogeneous in c: ``v' W(c) v = min_a sum_m c_m (v_m - a)^2`` for the softmax, so
``c >= kappa c0`` gives ``W(c) >= kappa W(c0)``; and where c falls short of ``q c0`` by ``e_m``,
``v' W(c) v >= q v' W(c0) v - sum_m e_m range(v)^2``, as the minimising a lies within the range of v. Those are all
that the proofs in `flips.refit.proof` ask of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]
IntArray = np.ndarray[Any, np.dtype[np.integer[Any]]]


def sigmoid(margin: FloatArray) -> FloatArray:
    """``1 / (1 + exp(-margin))``, without overflow, by the vectorised tanh."""
    out = np.tanh(0.5 * margin)
    out += 1.0
    out *= 0.5
    return np.asarray(out)


@dataclass(frozen=True)
class ClassWeight:
    """The rule that turns labels into weights: s_i = base_i * weight(label of i).

    Attributes
    ----------
    fixed : tuple of floats
        weights of the classes where the rule does not depend on the labels; of "not this class" and "this class"
        where one is set against the rest.
    balanced : bool
        weights ``n / (K n_c)`` with base-weighted class counts n_c; then a relabelling changes every weight.
    """

    fixed: tuple[float, ...] = (1.0, 1.0)
    balanced: bool = False

    @property
    def equal(self) -> bool:
        """Whether no label changes any weight."""
        return not self.balanced and len(set(self.fixed)) == 1

    def at(self, positive: Any, total: float) -> FloatArray:
        """Weights of two classes, shape (2, ...), when the positives weigh ``positive`` of ``total``."""
        positive = np.asarray(positive, dtype=np.float64)
        return self.of(np.stack([total - positive, positive]), total)

    def of(self, counts: FloatArray, total: float) -> FloatArray:
        """Weights of the classes, shape (K, ...), for what each of them weighs of ``total``."""
        if not self.balanced:
            return np.broadcast_to(np.reshape(self.fixed, (-1, *[1] * (counts.ndim - 1))), counts.shape)
        with np.errstate(divide="ignore"):
            return np.asarray(total / (float(len(counts)) * counts))


@dataclass(frozen=True)
class Separate:
    """A logistic model for each of M outputs: class c is "1" in output c, or in the only one where c = 1."""

    outputs: int = 1

    coupled = False

    @property
    def classes(self) -> int:
        """How many classes."""
        return max(self.outputs, 2)

    def targets(self, y: FloatArray) -> FloatArray:
        """0.0 or 1.0 for every output, shape (n M,), from class codes of shape (n,)."""
        return _indicators(y, self.outputs)

    def probability(self, z: FloatArray) -> FloatArray:
        """``sigma(z)``, the shape of ``z``."""
        return sigmoid(z)

    def loss(self, z: FloatArray, y: FloatArray) -> FloatArray:
        """Loss of every output, unweighted, shape (n M,)."""
        return np.asarray(np.logaddexp(0.0, z) - self.targets(y) * z)

    def curvature(self, probability: FloatArray, weight: FloatArray, z: FloatArray | None = None) -> FloatArray:
        """``c = s p (1 - p)``, free of the rounding of ``1 - p`` where z is given."""
        return np.asarray(weight * probability * (1.0 - probability if z is None else sigmoid(-z)))

    def fill_curvature(self, probability: FloatArray, weight: FloatArray, out: FloatArray) -> None:
        """`curvature` of many values, into ``out``."""
        np.multiply(probability, 1.0 - probability, out=out)
        out *= weight

    def product(self, c: FloatArray, v: FloatArray) -> FloatArray:
        """``W(c) v``."""
        return np.asarray(c * v)

    def difference(
        self, c: FloatArray, other: FloatArray, v: FloatArray, known: FloatArray | None = None
    ) -> FloatArray:
        """``(W(c) - W(other)) v``."""
        return np.asarray((c - other) * v)

    def counts(self, base: FloatArray, y: FloatArray) -> FloatArray:
        """What the ones of every output weigh, shape (M,)."""
        targets = self.targets(y).reshape(-1, self.outputs)
        return np.array([base @ np.ascontiguousarray(targets[:, m]) for m in range(self.outputs)])

    def class_weights(self, rule: ClassWeight, counts: FloatArray, total: float) -> FloatArray:
        """Weights of zeros and ones, shape (2, M, ...), for `counts` of shape (M, ...)."""
        return rule.at(counts, total)

    def weights(self, base: FloatArray, by_class: FloatArray, y: FloatArray) -> FloatArray:
        """Weight of every output of rows labelled y, shape (n M, B), for class weights (2, M, B)."""
        chosen = self.targets(y).reshape(-1, self.outputs).astype(np.intp)
        found = base[:, None, None] * by_class[chosen, np.arange(self.outputs)]
        return np.asarray(found.reshape(-1, by_class.shape[-1]))

    def cell_weights(self, base: FloatArray, by_class: FloatArray, y: FloatArray, column: IntArray) -> FloatArray:
        """Weights of rows labelled y, each under its own column's class weights, shape (k, M)."""
        chosen = self.targets(y).reshape(-1, self.outputs).astype(np.intp)
        return np.asarray(base[:, None] * by_class[chosen, np.arange(self.outputs), column[:, None]])


@dataclass(frozen=True)
class Coupled:
    """One softmax over the M = K outputs of a row."""

    outputs: int

    coupled = True

    @property
    def classes(self) -> int:
        """How many classes."""
        return self.outputs

    def _rows(self, flat: FloatArray) -> FloatArray:
        return flat.reshape(-1, self.outputs, *flat.shape[1:])

    def targets(self, y: FloatArray) -> FloatArray:
        """0.0 or 1.0 for every output, shape (n M,), from class codes of shape (n,)."""
        return _indicators(y, self.outputs)

    def probability(self, z: FloatArray) -> FloatArray:
        """The softmax of each row, the shape of ``z``."""
        rows = self._rows(z)
        out = np.exp(rows - _largest(rows))
        out /= _sums(out)
        return np.asarray(out.reshape(z.shape))

    def loss(self, z: FloatArray, y: FloatArray) -> FloatArray:
        """Loss of every row, unweighted, in the output of its class and 0 in the others, shape (n M,)."""
        rows = self._rows(z)
        top = _largest(rows)
        total = top + np.log(_sums(np.exp(rows - top)))
        return np.asarray(self.targets(y) * (total - rows).reshape(z.shape))

    def curvature(self, probability: FloatArray, weight: FloatArray, z: FloatArray | None = None) -> FloatArray:
        """``c = s p``."""
        return np.asarray(weight * probability)

    def fill_curvature(self, probability: FloatArray, weight: FloatArray, out: FloatArray) -> None:
        """`curvature` of many values, into ``out``."""
        np.multiply(probability, weight, out=out)

    def product(self, c: FloatArray, v: FloatArray) -> FloatArray:
        """``W(c) v = c (v - (c . v) / sum(c))`` of each row."""
        weights, values = self._rows(c), self._rows(v)
        total = _sums(weights)
        mean = np.einsum("nm...,nm...->n...", weights, values)[:, None] / np.where(total > 0, total, 1.0)
        return np.asarray((weights * (values - mean)).reshape(-1, *v.shape[1:]))

    def difference(
        self, c: FloatArray, other: FloatArray, v: FloatArray, known: FloatArray | None = None
    ) -> FloatArray:
        """``(W(c) - W(other)) v``; ``known`` is ``W(other) v`` where that is at hand."""
        return self.product(c, v) - (self.product(other, v) if known is None else known)

    def counts(self, base: FloatArray, y: FloatArray) -> FloatArray:
        """What every class weighs, shape (K,)."""
        return np.bincount(y.astype(np.intp), weights=base, minlength=self.outputs).astype(np.float64)

    def class_weights(self, rule: ClassWeight, counts: FloatArray, total: float) -> FloatArray:
        """Weights of the classes, shape (K, 1, ...), for `counts` of shape (K, ...)."""
        return rule.of(counts, total)[:, None]

    def weights(self, base: FloatArray, by_class: FloatArray, y: FloatArray) -> FloatArray:
        """Weight of every output of rows labelled y, shape (n M, B), for class weights (K, 1, B)."""
        return np.repeat(base[:, None] * by_class[y.astype(np.intp), 0], self.outputs, axis=0)

    def cell_weights(self, base: FloatArray, by_class: FloatArray, y: FloatArray, column: IntArray) -> FloatArray:
        """Weights of rows labelled y, each under its own column's class weights, shape (k, M)."""
        return np.repeat((base * by_class[y.astype(np.intp), 0, column])[:, None], self.outputs, axis=1)


Likelihood = Separate | Coupled
TWO_CLASSES = Separate()


def _sums(rows: FloatArray) -> FloatArray:
    """Sums over the outputs, which stay as an axis of one; several times as fast as a reduction of a middle axis."""
    return np.asarray(np.einsum("nm...->n...", rows)[:, None])


def _largest(rows: FloatArray) -> FloatArray:
    """Largest output of each row, which stays as an axis of one; output by output, for the same reason."""
    out = rows[:, 0].copy()
    for m in range(1, rows.shape[1]):
        np.maximum(out, rows[:, m], out=out)
    return out[:, None]


def _indicators(y: FloatArray, outputs: int) -> FloatArray:
    """Class codes as indicators; one output's are the codes themselves."""
    if outputs == 1:
        return y
    return np.asarray((y[:, None] == np.arange(outputs)).astype(np.float64).reshape(-1))
