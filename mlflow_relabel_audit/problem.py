"""What scikit-learn minimised, read off a fitted estimator or Pipeline.

scikit-learn's l2-regularised logistic regression minimises, up to the factor C,

    F(theta) = sum_i s_i [log(1 + exp(z_i)) - y_i z_i] + 1/2 theta' R theta,    z_i = x_i . theta

with ``R = I / C``, except that the intercept is free for every solver but liblinear, which treats it as the
weight of a constant column ``intercept_scaling`` and so penalises ``(b / intercept_scaling)^2``. With K > 2 classes
there are K such outputs, coupled by a softmax, or each against the rest (`likelihood`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin, VarianceThreshold
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from mlflow_relabel_audit.errors import RequestError, UnsupportedModelError
from mlflow_relabel_audit.likelihood import (
    TWO_CLASSES,
    ClassWeight,
    Coupled,
    FloatArray,
    IntArray,
    Likelihood,
    Separate,
)

__all__ = [
    "SUPPORTED",
    "ClassWeight",
    "FloatArray",
    "IntArray",
    "Problem",
    "as_matrix",
    "read_problem",
    "supervised_steps",
    "unwrap",
]

SUPPORTED = (
    "a fitted LogisticRegression or LogisticRegressionCV (l2 penalty or none), a OneVsRestClassifier of "
    "LogisticRegression, or a Pipeline that ends in one"
)


@dataclass(frozen=True)
class Problem:
    """The training objective and the decision rule of one classifier.

    Attributes
    ----------
    theta : ndarray of shape (P,), float64
        fitted coefficients, the intercept last where there is one; of M outputs one after the other, P = M p.
    penalty : ndarray of shape (P,), float64
        diagonal of R; 0 marks a coordinate that is not penalised.
    intercept : bool
    classes : tuple
        the labels as the estimator knows them; of two, the negative one first.
    threshold : float
        probability above which a row of two classes is predicted positive; of more, the largest output decides.
    class_weight : ClassWeight
    solver : str
        the solver that fitted theta, for reports.
    likelihood : Separate or Coupled
    """

    theta: FloatArray
    penalty: FloatArray
    intercept: bool
    classes: tuple[Any, ...]
    threshold: float
    class_weight: ClassWeight
    solver: str
    likelihood: Likelihood = TWO_CLASSES

    @property
    def outputs(self) -> int:
        """M, the linear outputs of a row."""
        return self.likelihood.outputs

    @property
    def features(self) -> int:
        """Features of a row."""
        return len(self.theta) // self.outputs - int(self.intercept)

    @property
    def cut(self) -> float:
        """logit(threshold): the margin of a row is x . theta - cut."""
        return float(np.log(self.threshold) - np.log1p(-self.threshold))

    def probabilities(self, scores: FloatArray) -> FloatArray:
        """Probability of every class as the estimator gives it, shape (K, ...), from outputs of shape (M, ...)."""
        if self.likelihood.coupled:
            return self.likelihood.probability(scores.reshape(self.outputs, -1)).reshape(scores.shape)
        apart = self.likelihood.probability(scores)
        if self.outputs == 1:
            return np.concatenate([1.0 - apart, apart])
        return np.asarray(apart / np.maximum(apart.sum(axis=0), np.finfo(float).tiny))

    def encode(self, labels: Any) -> FloatArray:
        """Labels as class codes 0.0, 1.0, ... in the order of ``classes``, shape (n,).

        Raises
        ------
        RequestError
            A label is missing or is not one of the model's classes.
        """
        values = np.asarray(labels)
        if values.ndim != 1:
            raise RequestError(f"labels: got shape {values.shape}; pass one label per row")
        if pd.isna(values).any():
            raise RequestError(
                f"labels: {int(pd.isna(values).sum())} of {len(values)} are missing; drop or fill those rows"
            )
        codes = np.full(len(values), np.nan)
        for code, name in enumerate(self.classes):
            codes[values == name] = code
        known = np.isfinite(codes)
        if not np.all(known):
            odd = pd.unique(pd.Series(values[~known]))[:3].tolist()
            raise RequestError(
                f"labels: got {odd} beside the model's classes {list(self.classes)}; "
                "pass the labels the model was trained on"
            )
        return codes


def unwrap(estimator: Any) -> tuple[Any, Any | None]:
    """Split a fitted estimator into its final logistic regression and the transformer before it, or None.

    A fitted search (``GridSearchCV`` and its kin) stands for its ``best_estimator_``.

    Raises
    ------
    UnsupportedModelError
        Another estimator: the message says what is supported.
    """
    best = getattr(estimator, "best_estimator_", None)
    if best is not None:
        return unwrap(best)
    if isinstance(estimator, Pipeline):
        final, inner = unwrap(estimator.steps[-1][1])
        if inner is not None:
            raise UnsupportedModelError(
                "model: a Pipeline whose last step is itself a Pipeline; flatten it into one Pipeline and log that"
            )
        before = [step for _, step in estimator.steps[:-1] if step not in (None, "passthrough")]
        return final, estimator[:-1] if before else None
    if isinstance(estimator, (LogisticRegression, LogisticRegressionCV, OneVsRestClassifier)):
        return estimator, None
    raise UnsupportedModelError(f"model: got {type(estimator).__name__}; this audit takes {SUPPORTED}")


def supervised_steps(transformer: Any) -> list[str]:
    """Names of transformer steps that were fitted on the labels: relabelling would change their output too."""
    found: list[str] = []
    stack: list[tuple[str, Any]] = [("", transformer)]
    while stack:
        name, step = stack.pop()
        children = getattr(step, "steps", None) or getattr(step, "transformers_", None)
        if children is None:
            children = getattr(step, "transformer_list", None)
        if children is not None:
            stack.extend((child[0], child[1]) for child in children)
        elif isinstance(step, BaseEstimator) and _needs_labels(step):
            found.append(f"{name} ({type(step).__name__})")
    return sorted(found)


def _needs_labels(step: Any) -> bool:
    if isinstance(step, SelectorMixin):  # selectors use labels whatever their tags say
        return not isinstance(step, VarianceThreshold)
    if hasattr(step, "__sklearn_tags__"):
        return bool(step.__sklearn_tags__().target_tags.required)
    return bool(step._get_tags().get("requires_y", False))


def read_problem(estimator: Any, *, threshold: float = 0.5) -> Problem:
    """Read the training objective off a fitted logistic regression (the final step, see `unwrap`).

    Raises
    ------
    UnsupportedModelError
        Not fitted, an l1 or elasticnet penalty, coefficients averaged over folds.
    RequestError
        The threshold is not strictly between 0 and 1.
    """
    if not (isinstance(threshold, (int, float)) and 0.0 < threshold < 1.0):
        raise RequestError(f"threshold: got {threshold!r}; pass a probability strictly between 0 and 1")
    final, _ = unwrap(estimator)
    try:
        check_is_fitted(final)
    except Exception as error:
        raise UnsupportedModelError(
            "model: got an estimator that is not fitted; fit it, or log the fitted one"
        ) from error
    classes = np.asarray(final.classes_).tolist()
    several = len(classes) > 2
    if several and threshold != 0.5:
        raise RequestError(
            f"threshold: got {threshold!r} for a model of {len(classes)} classes, whose largest output decides; leave "
            "it out"
        )
    members, likelihood = _outputs(final, len(classes))
    read = [_coefficients(*member) for member in members]
    theta, penalty = (np.concatenate(part) for part in zip(*read, strict=True))
    if not np.all(np.isfinite(theta)):
        raise UnsupportedModelError("model: its coefficients are not finite; refit it (scale the features, lower C)")
    first = members[0][0]
    names = [False, True] if isinstance(final, OneVsRestClassifier) else classes
    return Problem(
        theta=theta,
        penalty=penalty,
        intercept=bool(first.fit_intercept),
        classes=tuple(classes),
        threshold=float(threshold),
        class_weight=_class_weight(first, names),
        solver=str(first.solver),
        likelihood=likelihood,
    )


def _outputs(final: Any, classes: int) -> tuple[list[tuple[Any, int]], Likelihood]:
    """Which row of which regression's coefficients each output is, and what they make together."""
    if isinstance(final, OneVsRestClassifier):
        if getattr(final, "multilabel_", False):
            raise UnsupportedModelError(
                "model: a OneVsRestClassifier fitted on several labels per row; audit each label's model by itself"
            )
        members = list(final.estimators_)
        odd = [type(member).__name__ for member in members if not isinstance(member, LogisticRegression)]
        if odd:
            raise UnsupportedModelError(f"model: a OneVsRestClassifier of {odd[0]}; this audit takes {SUPPORTED}")
        return [(member, 0) for member in members], Separate(len(members))
    if classes == 2:
        return [(final, 0)], TWO_CLASSES
    several = [(final, m) for m in range(classes)]
    rule = getattr(final, "multi_class", "auto")  # up to scikit-learn 1.7
    apart = rule == "ovr" or (final.solver == "liblinear" and rule != "multinomial")
    if apart and final.class_weight is not None:
        raise UnsupportedModelError(
            "model: one against the rest inside LogisticRegression with class weights; fit a OneVsRestClassifier of it"
        )
    return several, Separate(classes) if apart else Coupled(classes)


def _coefficients(final: Any, output: int) -> tuple[FloatArray, FloatArray]:
    """Coefficients of one output of a regression, the intercept last, and their penalties."""
    inverse_c = _inverse_regularisation(final, output)
    weights = np.array(np.atleast_2d(final.coef_)[output], dtype=np.float64)
    penalty = np.full(len(weights), inverse_c)
    if not final.fit_intercept:
        return weights, penalty
    scale = float(final.intercept_scaling)
    free = inverse_c / scale**2 if final.solver == "liblinear" else 0.0
    return np.append(weights, np.float64(np.ravel(final.intercept_)[output])), np.append(penalty, free)


def _inverse_regularisation(final: Any, output: int) -> float:
    """1 / C of the l2 penalty, 0 without one; refuses every other penalty."""
    if isinstance(final, LogisticRegressionCV):
        if not final.refit:
            raise UnsupportedModelError(
                "model: LogisticRegressionCV(refit=False) averages coefficients over folds, so it minimises "
                "no objective; fit with refit=True"
            )
        chosen = np.ravel(final.C_)
        c, ratio = float(chosen[min(output, len(chosen) - 1)]), np.ravel(getattr(final, "l1_ratio_", 0.0))[0]
    else:
        c, ratio = float(final.C), final.l1_ratio
    penalty = final.penalty
    if penalty is None:
        return 0.0
    if penalty == "deprecated":  # scikit-learn 1.8 and later say it with l1_ratio and C alone
        penalty = "l2" if not ratio else "l1" if ratio == 1 else "elasticnet"
    if penalty != "l2":
        raise UnsupportedModelError(
            f"model: got penalty {penalty!r}, whose objective has no curvature at zero weights; "
            "refit with the l2 penalty (l1_ratio=0)"
        )
    return 1.0 / c


def _class_weight(final: Any, names: list[Any]) -> ClassWeight:
    rule = final.class_weight
    if rule is None:
        return ClassWeight((1.0,) * len(names))
    if isinstance(rule, str):
        return ClassWeight((1.0,) * len(names), balanced=True)
    return ClassWeight(tuple(float(rule.get(name, 1.0)) for name in names))


def as_matrix(features: Any) -> Any:
    """Transformed features as a C-ordered float ndarray or CSR matrix of shape (n, features).

    Raises
    ------
    RequestError
        Not numeric, not two-dimensional, or holding NaN or infinity.
    """
    if sp.issparse(features):
        matrix: Any = features.tocsr()
        if not matrix.has_sorted_indices:  # the same rows in one form, or their fingerprint hangs on who sorts them
            matrix = matrix.sorted_indices()
        stored = matrix.data
    else:
        try:
            matrix = np.asarray(features)
            if matrix.dtype not in (np.float32, np.float64):
                matrix = matrix.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise RequestError(
                f"features: not numeric ({error}); pass what the model's fit took, with its preprocessing in a Pipeline"
            ) from error
        stored = matrix
    if matrix.ndim != 2:
        raise RequestError(f"features: got {matrix.ndim} dimension(s); pass a table of shape (rows, features)")
    if not np.all(np.isfinite(stored)):
        bad = int(np.count_nonzero(~np.isfinite(stored)))
        raise RequestError(f"features: {bad} value(s) are NaN or infinite; impute or drop those rows before the model")
    return matrix
