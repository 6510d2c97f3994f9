"""The label curve of K classes: how given labels follow out-of-fold probabilities when some labels are wrong.

    P(given j | x) = sum_c q_c(x) T_cj,    q(x) = softmax(a + b log p(x))

p are the probabilities of models that did not see the row; a and b > 0 undo a shift and over- or under-confidence.
T is the transition matrix, P(a true c is written as j): ``T_cc = 1 - r_c``, and ``r_c`` is spread over the other
classes in a pattern of its own. As with two classes the fit is made on a grid, of the typical rate r that the rates of
the classes scatter about, and averaged over it, never maximised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import minimize

from mlflow_relabel_audit.analyses.noise.label_curve import NEGLIGIBLE
from mlflow_relabel_audit.likelihood import sigmoid
from mlflow_relabel_audit.problem import FloatArray

TYPICAL_RATES = np.linspace(np.sqrt(0.0005), np.sqrt(0.6), 20) ** 2
RATE_WIDTH = 0.8
"""Standard deviation of the logits of the classes' rates about the typical one."""
PATTERN_ROWS = 2.0
"""Rows of each class, spread evenly, that the pattern of its wrong labels has seen before any evidence."""
SHIFT_WIDTH = 1.0
INTERVAL_POWER = 0.3
"""The likelihood is raised to this power for the interval: p is an estimate and the curve is a model."""
MAX_ROWS = 20_000
"""Rows that the curve is fitted on: more do not move it beyond its interval."""
LOWEST = -30.0
ITERATIONS = 200


@dataclass(frozen=True)
class LabelTransitions:
    """The fit at G typical rates, and their weights.

    Attributes
    ----------
    rate : ndarray of shape (G,)
        typical share of a class's rows that are written as another.
    transition : ndarray of shape (G, K, K)
        P(a true c is written as j).
    shift : ndarray of shape (G, K)
        a.
    slope : ndarray of shape (G,)
        b.
    weight, wide_weight : ndarray of shape (G,)
        posterior weights, summing to 1; and with a tempered likelihood, for intervals.
    """

    rate: FloatArray = field(repr=False)
    transition: FloatArray = field(repr=False)
    shift: FloatArray = field(repr=False)
    slope: FloatArray = field(repr=False)
    weight: FloatArray = field(repr=False)
    wide_weight: FloatArray = field(repr=False)

    def true_class(self, log_probability: FloatArray, label: FloatArray) -> FloatArray:
        """Probability of every class to be the right one, shape (n, K), for log p (n, K) and class codes (n,)."""
        out = np.zeros_like(log_probability)
        for g in np.flatnonzero(self.weight > NEGLIGIBLE):
            out += self.weight[g] * self._at(int(g), log_probability, label)
        return np.asarray(out / out.sum(axis=1, keepdims=True))

    def mean_wrong(self, log_probability: FloatArray, label: FloatArray) -> FloatArray:
        """Share of wrong labels that each typical rate implies, shape (G,); NaN where it weighs nothing."""
        out = np.full(len(self.rate), np.nan)
        own = np.arange(len(label)), label.astype(np.intp)
        for g in np.flatnonzero(np.maximum(self.weight, self.wide_weight) > NEGLIGIBLE):
            out[g] = 1.0 - self._at(int(g), log_probability, label)[own].mean()
        return out

    def _at(self, g: int, log_probability: FloatArray, label: FloatArray) -> FloatArray:
        joint = _softmax(self.shift[g] + self.slope[g] * np.maximum(log_probability, LOWEST))
        joint *= self.transition[g][:, label.astype(np.intp)].T
        return np.asarray(joint / joint.sum(axis=1, keepdims=True))


def fit_label_transitions(
    log_probability: FloatArray,
    label: FloatArray,
    clean_log_probability: FloatArray | None = None,
    clean_label: FloatArray | None = None,
    power: float = 1.0,
    interval_power: float = INTERVAL_POWER,
) -> LabelTransitions:
    """Fit the curve at every typical rate and weigh the rates.

    Parameters
    ----------
    log_probability : ndarray of shape (n, K)
        logarithms of the training rows' out-of-fold probabilities.
    label : ndarray of shape (n,)
        given labels, codes 0 to K - 1.
    clean_log_probability, clean_label : ndarray of shape (m, K) and (m,), optional
        of evaluation rows, whose labels are taken to be right.
    power, interval_power : float
        powers of the likelihood in ``weight`` and in ``wide_weight``.
    """
    parts = [_Labelled.of(log_probability, label)]
    if clean_log_probability is not None and clean_label is not None and len(clean_label):
        parts.append(_Labelled.of(clean_log_probability, clean_label))
    classes = log_probability.shape[1]
    at = np.zeros(classes + 1 + classes * classes)
    found: list[_Fit] = []
    for rate in TYPICAL_RATES:
        search = minimize(
            _penalised, at, args=(parts, float(rate), classes), jac=True, method="L-BFGS-B",
            options={"maxiter": ITERATIONS, "ftol": 1e-9, "gtol": 1e-3},
        )  # fmt: skip
        at = search.x
        found.append(_Fit.of(at, float(rate), classes))
    loglik = np.array([fit.loglik(parts) for fit in found])
    prior = np.array([fit.log_prior for fit in found])
    return LabelTransitions(
        TYPICAL_RATES.copy(),
        np.stack([fit.transition for fit in found]),
        np.stack([fit.shift for fit in found]),
        np.array([fit.slope for fit in found]),
        _normalised(power * loglik + prior),
        _normalised(interval_power * loglik + prior),
    )


@dataclass(frozen=True)
class _Labelled:
    """Log-probabilities (n, K) with labels as codes (n,) and indicators (n, K)."""

    log_probability: FloatArray
    code: Any
    indicator: FloatArray
    scale: float

    @classmethod
    def of(cls, log_probability: FloatArray, label: FloatArray) -> _Labelled:
        code, scale = label.astype(np.intp), 1.0
        if len(code) > MAX_ROWS:
            some = np.random.default_rng(0).permutation(len(code))[:MAX_ROWS]
            log_probability, code, scale = log_probability[some], code[some], len(code) / MAX_ROWS
        indicator = np.zeros(log_probability.shape)
        indicator[np.arange(len(code)), code] = 1.0
        return cls(np.maximum(log_probability, LOWEST), code, indicator, scale)


@dataclass(frozen=True)
class _Fit:
    """The curve at one set of parameters, with what its gradient needs."""

    shift: FloatArray
    slope: float
    rates: FloatArray
    pattern: FloatArray
    transition: FloatArray
    log_prior: float

    @classmethod
    def of(cls, parameters: FloatArray, rate: float, classes: int) -> _Fit:
        """From a (K,), log b, the logits of the rates about the typical one (K,), and the pattern (K, K - 1)."""
        shift, log_slope = parameters[:classes], float(parameters[classes])
        lean = parameters[classes + 1 : 2 * classes + 1]
        pattern = _softmax(parameters[2 * classes + 1 :].reshape(classes, classes - 1))
        rates = sigmoid(np.log(rate) - np.log1p(-rate) + lean)
        transition = np.zeros((classes, classes))
        transition[~np.eye(classes, dtype=bool)] = (rates[:, None] * pattern).ravel()
        transition[np.diag_indices(classes)] = 1.0 - rates
        even = np.log(pattern * (classes - 1)).mean(axis=1).sum()
        log_prior = (
            PATTERN_ROWS * even
            - 0.5 * float(shift @ shift) / SHIFT_WIDTH**2
            - 0.5 * log_slope**2
            - 0.5 * float(lean @ lean) / RATE_WIDTH**2
        )
        return cls(shift, float(np.exp(log_slope)), rates, pattern, transition, float(log_prior))

    def loglik(self, parts: list[_Labelled]) -> float:
        total = 0.0
        for number, part in enumerate(parts):
            clean = _softmax(self.shift + self.slope * part.log_probability)
            written = np.eye(len(self.shift)) if number else self.transition
            total += part.scale * float(np.log(np.sum(clean * written[:, part.code].T, axis=1) + 1e-300).sum())
        return total


def _penalised(parameters: FloatArray, parts: list[_Labelled], rate: float, classes: int) -> tuple[float, FloatArray]:
    """Minus the log-posterior of the parameters at one typical rate, and its gradient."""
    fit = _Fit.of(parameters, rate, classes)
    value, by_shift, by_slope = -fit.log_prior, fit.shift / SHIFT_WIDTH**2, float(parameters[classes])
    by_transition = np.zeros((classes, classes))
    for number, part in enumerate(parts):
        clean = _softmax(fit.shift + fit.slope * part.log_probability)
        written = np.eye(classes) if number else fit.transition
        joint = clean * written[:, part.code].T
        total = joint.sum(axis=1) + 1e-300
        value -= part.scale * float(np.log(total).sum())
        pull = part.scale * (clean - joint / total[:, None])
        by_shift = by_shift + pull.sum(axis=0)
        by_slope += fit.slope * float(np.sum(pull * part.log_probability))
        if not number:
            by_transition -= part.scale * ((clean / total[:, None]).T @ part.indicator)
    off = by_transition[~np.eye(classes, dtype=bool)].reshape(classes, classes - 1)
    mean = (fit.pattern * off).sum(axis=1)
    lean = parameters[classes + 1 : 2 * classes + 1]
    by_lean = fit.rates * (1.0 - fit.rates) * (mean - np.diag(by_transition)) + lean / RATE_WIDTH**2
    by_pattern = fit.rates[:, None] * fit.pattern * (off - mean[:, None])
    by_pattern += PATTERN_ROWS * (fit.pattern - 1.0 / (classes - 1))
    return value, np.concatenate([by_shift, [by_slope], by_lean, by_pattern.ravel()])


def _softmax(logits: FloatArray) -> FloatArray:
    out = np.exp(logits - logits.max(axis=-1, keepdims=True))
    out /= out.sum(axis=-1, keepdims=True)
    return np.asarray(out)


def _normalised(log_weight: FloatArray) -> FloatArray:
    weight = np.exp(log_weight - log_weight.max())
    return np.asarray(weight / weight.sum())
