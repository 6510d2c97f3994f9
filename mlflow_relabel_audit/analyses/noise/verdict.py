"""What a noise audit says of its figures: the findings that two classes and several share."""

from __future__ import annotations

from typing import Any

from mlflow_relabel_audit.analyses.findings import Finding, Level
from mlflow_relabel_audit.analyses.noise.foldout import FoldOut
from mlflow_relabel_audit.problem import FloatArray, Problem

NO_NOISE_RATE = 0.01
WIDE_HIGH = 0.1
"""An interval that reaches from none to beyond this rate does not tell."""
SURE_SHARE = 0.05
"""Rows to check are shown only where the sure ones hold this share of the expected number of wrong labels."""


def verdict(rate: tuple[float, float, float], wrong: FloatArray, sure: Any, flagged: Any) -> list[Finding]:
    """Whether there is noise, and whether it is known where (findings N001 to N003)."""
    estimate, low, high = rate
    spread = f"{estimate:.1%} of the labels (95 % interval {low:.1%} to {high:.1%})"
    if low < NO_NOISE_RATE:
        message = f"Consistent with no label noise: the estimate is {spread}."
        if high >= WIDE_HIGH:
            message = f"No evidence of label noise, nor against it: the estimate is {spread}, which fits either."
        if flagged.any():
            message += f" The {int(flagged.sum())} flagged rows are worth a look all the same."
        return [Finding("N001", "info", message)]
    level: Level = "critical" if low >= 0.1 else "warning"
    found = [Finding("N002", level, f"Label noise: an estimated {spread} are wrong.")]
    if not (flagged & ~sure).any() and sure.sum() < SURE_SHARE * wrong.sum():
        message = "Which labels are wrong is not identified: hardly any is more likely wrong than right."
        found.append(Finding("N003", "info", message))
    return found


def unevaluated() -> Finding:
    """That no evaluation rows were heard."""
    message = "The rate is read off the training labels alone; labelled evaluation rows would narrow it."
    return Finding("N005", "info", message, applicable=False)


def overfitted(problem: Problem, out: FoldOut) -> list[Finding]:
    """That the model follows its labels too closely, where it does."""
    if out.multiplier > 0.1 or not (problem.penalty > 0).any():
        return []
    message = (
        f"Held-out labels are predicted best at {out.multiplier:.2g} times the model's C: "
        "the model follows its labels, right or wrong, more closely than they deserve."
    )
    return [Finding("N007", "info", message)]
