"""The training hook: a logistic regression that is fitted and logged gets its run audited, by one line.

`capture` remembers what the last fits took, `hook` notices that one of those models is logged, `compose` audits
it. None of it uses MLflow's own patching: that keeps one patch per method, so that the last caller would
silently win.
"""

from __future__ import annotations

from mlflow_relabel_audit.autolog.settings import Settings

__all__ = ["autolog"]


def autolog(
    disable: bool = False,
    silent: bool = False,
    *,
    eval_data: object = None,
    max_predictions: int = 200,
    time_budget: float = 60.0,
    log_training_data: bool = False,
    threshold: float = 0.5,
) -> None:
    """Audit every logistic regression that is fitted and then logged to MLflow in this process.

    Call it once, before or after ``mlflow.sklearn.autolog()`` or without it, and before the fit. A
    LogisticRegression, a LogisticRegressionCV, a OneVsRestClassifier of either, a Pipeline that ends in one, or the
    best estimator of a search over one is audited when ``mlflow.sklearn.log_model`` (yours or autologging's) has
    logged it to a run. The run then holds what ``mlflow-relabel audit`` would have written. Training is not changed
    by it: an audit that fails costs one warning of the logger ``mlflow_relabel_audit`` and the tags
    ``relabel_audit.status`` (``failed``) and ``relabel_audit.error``.

    Parameters
    ----------
    disable : bool
        Take the hook out again; scikit-learn and MLflow are as they were.
    silent : bool
        No warning when an audit fails; the tags say it.
    eval_data : tuple (X, y), optional
        Rows whose predictions to audit, as the model's predict takes them, and their labels (or None). By default a
        random sample of the training rows.
    max_predictions : int
        Audit a random sample of at most this many rows.
    time_budget : float
        Seconds that one audit may hold up the training script. Predictions that are not reached by then are left
        out, and the report says so.
    log_training_data : bool
        Also store the training rows in the run, so that ``mlflow-relabel audit --run-id ID`` needs no
        ``--train-data`` later. Off, because rows may be sensitive.
    threshold : float
        Probability above which the second of two classes is predicted; models of more need 0.5.

    Raises
    ------
    RequestError
        An argument is not of that form.
    """
    # Imported here: the hook needs MLflow, and the environment's switch imports this package while MLflow itself
    # is being imported.
    from mlflow_relabel_audit.autolog import hook

    if disable:
        hook.uninstall()
        return
    hook.install(
        Settings.checked(
            silent=silent,
            eval_data=eval_data,
            max_predictions=max_predictions,
            time_budget=time_budget,
            log_training_data=log_training_data,
            threshold=threshold,
        )
    )
