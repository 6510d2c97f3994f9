"""Plain wraps of fit (remember) and of ``mlflow.models.Model.log`` (audit), put in and taken out as wholes."""

from __future__ import annotations

import contextvars
import functools
import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from mlflow_relabel_audit.autolog.capture import Capture, Captures, capturing
from mlflow_relabel_audit.autolog.settings import Settings

_logger = logging.getLogger("mlflow_relabel_audit")

_STATUS, _ERROR = "relabel_audit.status", "relabel_audit.error"
_GRACE = 1.0  # seconds that the audit's last write may take beyond the budget before it is left to itself


class _Thread(threading.local):
    auditing = False


class _Hook:
    """What is wrapped at present, and how to audit."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.one_audit = threading.Lock()
        self.captures = Captures()
        self.settings = Settings()
        self.fits: dict[type, Any] = {}
        """The methods that stood in each class before they were wrapped."""
        self.log: Any = None
        """The classmethod object that ``Model.log`` was."""
        self.thread = _Thread()
        self.refused = False
        """Whether ``autolog(disable=True)`` was the last word: the environment's switch respects it."""


_hook = _Hook()


@dataclass(frozen=True)
class _Logged:
    """A model that has just been logged."""

    estimator: Any
    capture: Capture
    run_id: str
    model_id: str
    tracking_uri: str


def install(settings: Settings) -> None:
    """Put the wraps in, or only change the settings where they are in."""
    with _hook.lock:
        _hook.settings, _hook.refused = settings, False
        wrap_fits()
        wrap_log()


def install_early() -> None:
    """The environment's switch: remember fits; MLflow, which may be half imported, is met at the first of them."""
    with _hook.lock:
        if not _hook.refused:
            wrap_fits()


def uninstall() -> None:
    """Put back the very objects that were there, and forget every capture."""
    with _hook.lock:
        _hook.refused = True
        if _hook.fits:
            with _below_autologging():
                for estimator, original in _hook.fits.items():
                    estimator.fit = original  # type: ignore[attr-defined]
            _hook.fits.clear()
        if _hook.log is not None:
            from mlflow.models import Model

            Model.log = _hook.log  # type: ignore[method-assign]
            _hook.log = None
        _hook.captures.clear()
        _hook.settings = Settings()


def wrap_fits() -> None:
    """Remember what the fits of the supported estimators take; needs scikit-learn only."""
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import Pipeline

    with _hook.lock:
        if _hook.fits:
            return
        with _below_autologging():
            for estimator in (LogisticRegression, LogisticRegressionCV, OneVsRestClassifier, Pipeline):
                original = vars(estimator)["fit"]
                _hook.fits[estimator] = original
                estimator.fit = capturing(original, _hook.captures, _ready)


def wrap_log() -> None:
    """Audit what is logged from now on."""
    from mlflow.models import Model

    with _hook.lock:
        if _hook.log is not None:
            return
        original = vars(Model)["log"]
        _hook.log = original
        Model.log = classmethod(_auditing(original.__func__))  # type: ignore[method-assign]


def _ready() -> None:
    """Before a fit: `Model.log` is wrapped by now, also where `wrap_fits` ran while MLflow was being imported."""
    if _hook.fits and _hook.log is None:
        with suppress(Exception):
            wrap_log()


def _auditing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def log(cls: Any, *args: Any, **kwargs: Any) -> Any:
        info = original(cls, *args, **kwargs)
        try:
            _after_log(info, kwargs.get("sk_model"))
        except Exception as error:  # nothing of this is the training script's fault
            _warn(f"relabel audit: {_line(error)}")
        return info

    return log


@contextmanager
def _below_autologging() -> Iterator[None]:
    """Take MLflow's patches of scikit-learn off meanwhile, so that the classes' own methods can be exchanged.

    MLflow calls, and on every new ``autolog()`` puts back, the method that it found. A wrap on top of its patch would
    be lost then; one below it stays.
    """
    import sys

    module = sys.modules.get("mlflow.utils.autologging_utils")
    known = getattr(module, "AUTOLOGGING_INTEGRATIONS", {})
    config = dict(known.get("sklearn") or {})
    if not config or config.get("disable", True):
        yield
        return
    import mlflow

    mlflow.sklearn.autolog(disable=True, silent=True)
    try:
        yield
    finally:
        accepted = inspect.signature(mlflow.sklearn.autolog).parameters
        again = {name: value for name, value in config.items() if name in accepted}
        mlflow.sklearn.autolog(**{**again, "silent": True})
        known["sklearn"].update(config)  # also whether it was mlflow.autolog() that switched it on


# -- one logged model ----------------------------------------------------------------------------------------


def _after_log(info: Any, model: Any) -> None:
    if model is None or _hook.thread.auditing:
        return
    estimator = getattr(model, "best_estimator_", model)
    capture = _hook.captures.get(estimator)
    if capture is None or not _ends_in_regression(estimator):
        return
    run_id, model_id = getattr(info, "run_id", None), getattr(info, "model_id", None)
    if not run_id or not model_id:
        _logger.info("relabel audit: the model was logged outside a run, so there is none to write an audit to")
        return
    with _hook.lock:
        if run_id in capture.audited:
            return
        capture.audited.add(run_id)
    import mlflow

    logged = _Logged(estimator, capture, str(run_id), str(model_id), mlflow.get_tracking_uri())
    try:
        _within_budget(logged, _hook.settings)
    except Exception as error:
        _failed(logged, error)


def _ends_in_regression(estimator: Any) -> bool:
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.multiclass import OneVsRestClassifier

    last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    if isinstance(last, OneVsRestClassifier):
        last = last.estimator
    return isinstance(last, (LogisticRegression, LogisticRegressionCV))


def _within_budget(logged: _Logged, settings: Settings) -> None:
    """Run the audit in a thread of its own and wait for it no longer than the budget.

    It looks at the clock itself and stops in time. The thread is for what cannot be stopped: one large
    factorisation, or a server that does not answer. It is then left to end by itself, with nothing to write.
    """
    end = time.monotonic() + settings.time_budget
    given_up = threading.Event()
    failures: list[Exception] = []

    def work() -> None:
        _hook.thread.auditing = True
        try:
            from mlflow_relabel_audit.autolog.compose import audit_fit

            audit_fit(
                logged.estimator,
                logged.capture,
                run_id=logged.run_id,
                model_id=logged.model_id,
                tracking_uri=logged.tracking_uri,
                settings=settings,
                end=end,
                given_up=given_up.is_set,
            )
        except Exception as error:
            failures.append(error)

    spent = f"the time budget of {settings.time_budget:g} s was spent"
    if not _hook.one_audit.acquire(timeout=settings.time_budget):
        raise TimeoutError(f"{spent} waiting for another model's audit; raise time_budget")
    try:
        context = contextvars.copy_context()
        worker = threading.Thread(target=context.run, args=(work,), name="relabel-audit", daemon=True)
        worker.start()
        worker.join(max(end - time.monotonic(), 0.0) + _GRACE)
        if worker.is_alive():
            given_up.set()
            raise TimeoutError(
                f"{spent} before the audit was; raise time_budget, or audit the run later with mlflow-relabel audit"
            )
    finally:
        given_up.set()
        _hook.one_audit.release()
    if failures:
        raise failures[0]


def _failed(logged: _Logged, error: Exception) -> None:
    """One warning and two tags."""
    reason = _line(error)
    _warn(f"relabel audit of run {logged.run_id} failed, the model itself is logged: {reason}")

    def tag() -> None:
        from mlflow import MlflowClient
        from mlflow.entities import RunTag

        with suppress(Exception):  # the store may be what failed
            client = MlflowClient(tracking_uri=logged.tracking_uri)
            client.log_batch(logged.run_id, tags=[RunTag(_STATUS, "failed"), RunTag(_ERROR, reason)], synchronous=True)

    marker = threading.Thread(target=contextvars.copy_context().run, args=(tag,), daemon=True)
    marker.start()
    marker.join(5.0)  # a server that does not answer is not waited for


def _line(error: BaseException) -> str:
    from mlflow_relabel_audit.tracking.credentials import one_line

    return one_line(error) or type(error).__name__


def _warn(message: str) -> None:
    if not _hook.settings.silent:
        _logger.warning(message)
