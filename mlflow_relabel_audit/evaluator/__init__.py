"""The evaluator ``relabel_audit`` of ``mlflow.models.evaluate``: k of the evaluated predictions, beside MLflow's own.

MLflow loads this module for every evaluation, whether or not it asks for the audit; so `compose`, which does it, is
imported only then. An audit that is not possible is one warning: it never ends the evaluation.
"""

from __future__ import annotations

import logging
from typing import Any

from mlflow.models.evaluation.base import EvaluationResult, ModelEvaluator

from mlflow_relabel_audit.provider import switched_on

_logger = logging.getLogger("mlflow_relabel_audit")


class RelabelEvaluator(ModelEvaluator):
    """How many training labels each evaluated prediction rests on.

    It runs where its configuration names ``train_data``, or where the environment variable
    ``MLFLOW_RELABEL_AUDIT`` is set; otherwise MLflow would run it in every evaluation that names no evaluators.

    Configuration: ``train_data``, a tuple ``(X, y)`` or ``(X, y, sample_weight)``, or a path or URI of parquet or csv
    with ``target`` (and ``weight_column``) naming its columns; by default what the model's run can give.
    ``threshold``, ``max_predictions``, ``verify`` and ``search`` as in `mlflow_relabel_audit.audit`.
    """

    @classmethod
    def can_evaluate(cls, *, model_type: str, evaluator_config: dict[str, Any], **_: Any) -> bool:
        """Whether it was asked for, and the model classifies."""
        asked = "train_data" in (evaluator_config or {}) or switched_on()
        return asked and model_type in ("classifier", None)

    def evaluate(
        self,
        *,
        model_type: str,
        dataset: Any,
        run_id: str,
        evaluator_config: dict[str, Any],
        model: Any = None,
        extra_metrics: Any = None,
        custom_artifacts: Any = None,
        predictions: Any = None,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Metrics ``relabel_audit/NAME`` and a table of the predictions; both empty where the audit failed."""
        try:
            from mlflow_relabel_audit.evaluator.compose import audit_evaluation

            return audit_evaluation(model, dataset, run_id, kwargs.get("model_id"), evaluator_config or {})
        except Exception as error:
            from mlflow_relabel_audit.tracking.credentials import one_line

            reason = one_line(error) or type(error).__name__
            _logger.warning("relabel audit left out of the evaluation: %s", reason)
            return EvaluationResult(metrics={}, artifacts={}, run_id=run_id)  # type: ignore[no-untyped-call]
