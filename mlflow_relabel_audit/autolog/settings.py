"""What the user asked of the training hook."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from mlflow_relabel_audit.errors import RequestError


@dataclass(frozen=True)
class Settings:
    """The arguments of `autolog`, checked."""

    silent: bool = False
    eval_data: tuple[Any, Any] | None = field(default=None, repr=False)
    max_predictions: int = 200
    time_budget: float = 60.0
    log_training_data: bool = False
    threshold: float = 0.5

    @classmethod
    def checked(
        cls,
        *,
        silent: bool,
        eval_data: Any,
        max_predictions: Any,
        time_budget: Any,
        log_training_data: bool,
        threshold: Any,
    ) -> Settings:
        """Settings whose figures make sense; refused now rather than after the user's training.

        Raises
        ------
        RequestError
            Names the argument.
        """
        if eval_data is not None and not (isinstance(eval_data, tuple) and len(eval_data) == 2):
            raise RequestError(
                f"eval_data: got {type(eval_data).__name__}; pass a tuple (X, y), with None for unknown labels"
            )
        if isinstance(max_predictions, bool) or not isinstance(max_predictions, Integral) or int(max_predictions) < 1:
            raise RequestError(f"max_predictions: got {max_predictions!r}; pass a positive whole number")
        if not isinstance(time_budget, Real) or not float(time_budget) > 0:
            raise RequestError(f"time_budget: got {time_budget!r}; pass a positive number of seconds")
        if not isinstance(threshold, Real) or not 0 < float(threshold) < 1:
            raise RequestError(f"threshold: got {threshold!r}; pass a probability between 0 and 1")
        return cls(
            bool(silent),
            eval_data,
            int(max_predictions),
            float(time_budget),
            bool(log_training_data),
            float(threshold),
        )
