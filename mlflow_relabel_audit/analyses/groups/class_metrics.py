"""Outcomes and figures by evaluation group of more than two classes: each class against the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mlflow_relabel_audit.analyses.groups.grouping import Attribute
from mlflow_relabel_audit.analyses.groups.metrics import EXCESS, FLIPS, RATES, metrics_by_group
from mlflow_relabel_audit.analyses.groups.statistics import holm
from mlflow_relabel_audit.problem import FloatArray

COUNTED_BY_CLASS = ("n_positive", "n_negative")


def predicted_as(name: Any) -> str:
    """The outcome of being predicted to be of a class."""
    return f"predicted {name}"


def missed(name: Any) -> str:
    """The outcome of being of a class and predicted to be of another."""
    return f"missed {name}"


def wrongly(name: Any) -> str:
    """The outcome of being predicted to be of a class and being of another."""
    return f"wrongly {name}"


def class_outcomes(predicted: Any, truth: Any, known: Any, classes: tuple[Any, ...]) -> dict[str, Any]:
    """Masks of the predictions by outcome, shape (T,); errors only where some label is known.

    Parameters
    ----------
    predicted, truth : ndarray of shape (T,)
        class codes; of ``truth`` only those that are ``known`` count.
    known : ndarray of shape (T,), bool
    classes : names of the classes.
    """
    masks: dict[str, Any] = {"all": np.ones(len(predicted), dtype=bool)}
    if known.any():
        masks["misclassified"] = known & (predicted != truth)
    for code, name in enumerate(classes):
        masks[predicted_as(name)] = predicted == code
    for code, name in enumerate(classes) if known.any() else ():
        masks[missed(name)] = masks["misclassified"] & (truth == code)
        masks[wrongly(name)] = masks["misclassified"] & (predicted == code)
    return masks


def metrics_of_classes(
    predictions: pd.DataFrame,
    outcomes: Mapping[str, Any],
    attributes: list[Attribute],
    classes: tuple[Any, ...],
    probabilities: FloatArray | None,
    *,
    alpha: float,
    min_group: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Figures by group, and by group and class.

    Parameters
    ----------
    predictions, outcomes, attributes, alpha, min_group
        as in `group_metrics.metrics_by_group`; outcomes of `class_outcomes`.
    classes : names of the K classes.
    probabilities : ndarray of shape (T, K), or None
        of every class, comparable with rates; without them nothing is said about errors in excess.

    Returns
    -------
    by_group : DataFrame
        accuracy and k; what needs a positive class is missing.
    by_class : DataFrame
        ``class`` beside the columns of `metrics_by_group`, its rates those of the class against the rest; no k.
    """
    options: dict[str, Any] = {"alpha": alpha, "min_group": min_group, "log_odds_shift": 0.0}
    overall = {name: outcomes[name] for name in ("all", "misclassified") if name in outcomes}
    by_group = metrics_by_group(predictions, overall, attributes, (None, None), **options)
    needs_class = [f"{rate}{end}" for rate in RATES if rate != "accuracy" for end in ("", "_low", "_high")]
    by_group[[*needs_class, *EXCESS]] = np.nan
    by_group = by_group.drop(columns=list(COUNTED_BY_CLASS))
    labels = predictions["label"] if "label" in predictions.columns else pd.Series(np.nan, index=predictions.index)
    parts = []
    for code, name in enumerate(classes):
        own = {"predicted_positive": outcomes[predicted_as(name)]}
        if "misclassified" in outcomes:
            own["false_positive"], own["false_negative"] = outcomes[wrongly(name)], outcomes[missed(name)]
            own["misclassified"] = own["false_positive"] | own["false_negative"]
        one = predictions.assign(
            label=pd.Series((labels == name).fillna(False).to_numpy(dtype=bool), index=labels.index)
            .astype("boolean")
            .where(labels.notna()),
            probability=0.0 if probabilities is None else probabilities[:, code],
        )
        part = metrics_by_group(one, own, attributes, (False, True), **options)
        part.insert(2, "class", name)
        parts.append(part)
    by_class = pd.concat(parts, ignore_index=True).drop(columns=[*FLIPS, "n_k", "k_source"])
    if probabilities is None:
        by_class[list(EXCESS)] = np.nan
    by_class["excess_p_adjusted"] = holm(by_class["excess_p"].to_numpy())
    return by_group, by_class
