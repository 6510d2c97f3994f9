"""A gate for a registered model version: rules on the figures of its audit, a verdict, and perhaps an alias.

The gate fails closed: a figure that is missing, whatever the reason, breaks every rule on it.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mlflow_relabel_audit import tracking
from mlflow_relabel_audit.audit import AuditResult, Progress, audit
from mlflow_relabel_audit.errors import GateFailedError, RequestError, StoreError
from mlflow_relabel_audit.tracking import (
    FOLDER,
    DataKeywords,
    DataOptions,
    PermissionDeniedError,
    ResolvedModel,
    Store,
)
from mlflow_relabel_audit.tracking.store import failures

if TYPE_CHECKING:
    from typing_extensions import Unpack

VERDICT, REASON = f"{FOLDER}.verdict", f"{FOLDER}.verdict_reason"
"""Tags of the model version: ``pass`` or ``fail``, and the rules with the figures they met."""

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_BOUND = re.compile(r"\s*(>=|<=|==|>|<)\s*([^\s<>=]+)\s*")
_RULE = re.compile(rf"\s*(?:{FOLDER}/)?([A-Za-z_]\w*)({_BOUND.pattern})")
_ALIAS = re.compile(r"(?!latest$|v\d+$)[\w-]{1,255}", re.IGNORECASE)


@dataclass(frozen=True)
class Rule:
    """One requirement: ``metric`` (without ``relabel_audit/``) compared with ``bound`` by ``comparison``."""

    metric: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric} {self.comparison} {self.bound:g}"

    def check(self, metrics: Mapping[str, float]) -> Check:
        """Hold an audit's metrics against the rule."""
        value = metrics.get(self.metric)
        if value is None or not math.isfinite(value):
            return Check(self, None, False)
        return Check(self, float(value), _OPERATORS[self.comparison](float(value), self.bound))


@dataclass(frozen=True)
class Check:
    """A rule with the value it met, None where the audit has none, and whether it holds."""

    rule: Rule
    value: float | None
    passed: bool

    def __str__(self) -> str:
        return f"{self.rule}: {'the audit has no such figure' if self.value is None else f'is {self.value:g}'}"


@dataclass(frozen=True)
class GateResult:
    """What a gate decided, and on which figures.

    Attributes
    ----------
    name, version : str
        the registered model and the version that was judged.
    run_id : str or None
        the run that logged it.
    model_uri, tracking_uri : str
        as asked for, without credentials.
    checks : tuple of Check
        every rule.
    metrics : dict
        the audit's figures.
    audited : bool
        whether the model was audited now; else the audit stored with its run was read.
    promoted : str or None
        the alias that now points to the version.
    messages : tuple of str
        what the audit says about its data and its sample.
    """

    name: str
    version: str
    run_id: str | None
    model_uri: str
    tracking_uri: str
    checks: tuple[Check, ...]
    metrics: dict[str, float] = field(repr=False)
    audited: bool
    promoted: str | None
    messages: tuple[str, ...] = field(repr=False)

    @property
    def passed(self) -> bool:
        """Whether every rule holds."""
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """The rules that failed, or where none did all of them, with what they met."""
        told = [check for check in self.checks if check.passed == self.passed]
        return "; ".join(map(str, told))

    def raise_for_failure(self) -> None:
        """Raise `GateFailedError` unless the gate passed."""
        if self.passed:
            return
        known = ""
        if any(check.value is None for check in self.checks):
            known = f" (the audit's figures: {', '.join(sorted(self.metrics))})"
        raise GateFailedError(
            f"model {self.name} version {self.version} failed its gate: {self.reason}{known}; "
            "correct the labels or the model, or change the rule"
        )


def gate(
    model_uri: str,
    require: Sequence[str] = (),
    promote: str | None = None,
    *,
    policy: str | Path | None = None,
    again: bool = False,
    tag: bool = True,
    threshold: float | None = None,
    max_predictions: int | None = None,
    tracking_uri: str | None = None,
    progress: Progress | None = None,
    **data: Unpack[DataKeywords],
) -> GateResult:
    """Judge a registered model version by its audit; audit it first where that has not been done.

    The audit stored with the model's run is read, and its files verified; one of another model of the run,
    or at another threshold than the one asked for, does not count.

    Parameters
    ----------
    model_uri : str
        ``models:/NAME/3`` or ``models:/NAME@ALIAS``.
    require : sequence of str
        Rules ``METRIC OP NUMBER`` with OP one of >= <= > < ==, such as ``"k_median >= 20"``. All must hold.
    promote : str, optional
        Alias to point to the version if, and only if, it passes.
    policy : path, optional
        TOML file with further rules: ``[require]`` and lines such as ``k_median = ">= 20"``.
    again : bool
        Audit even where an audit is stored.
    tag : bool
        Tag the version ``relabel_audit.verdict`` = ``pass`` or ``fail``, with the reason beside it.

    The others are those of `audit`, for where the model has to be audited.

    Returns
    -------
    GateResult
        Also for a model that fails; `GateResult.raise_for_failure` turns that into an error.

    Raises
    ------
    RequestError
        A rule, the policy, the alias or the model is not one; nothing was written.
    StoreError
        A server or file system failed.
    """
    rows = DataOptions(**data)
    rules = (*map(read_rule, require), *(() if policy is None else read_policy(policy)))
    if not rules:
        raise RequestError("gate: got no rule; give one with --require 'k_median >= 20' or --policy FILE")
    if promote is not None and not _ALIAS.fullmatch(promote):
        raise RequestError(
            f"alias {promote!r}: not one MLflow takes; use letters, digits, - and _, and neither 'latest' nor 'v1'"
        )
    with tracking.quiet():
        store = Store.connect(tracking_uri)
        resolved = tracking.resolve(store, model_uri=model_uri)
        if resolved.registered_name is None or resolved.version is None:
            raise RequestError(
                f"model {tracking.redact(model_uri)}: not a registered version, which a gate is for; "
                "register the model, and pass models:/NAME/VERSION or models:/NAME@ALIAS"
            )
        stored = None if again else _stored(store, resolved, threshold)
        if stored is not None:
            metrics, messages = stored
        else:
            request = partial(
                audit,
                threshold=threshold,
                max_predictions=max_predictions,
                tracking_uri=tracking_uri,
                progress=progress,
                **data,
            )
            metrics, messages = _audited(resolved, request, rows_named=rows.train_data is not None)
        checks = tuple(rule.check(metrics) for rule in rules)
        result = GateResult(
            name=resolved.registered_name,
            version=resolved.version,
            run_id=resolved.run_id,
            model_uri=tracking.redact(model_uri),
            tracking_uri=store.shown_uri,
            checks=checks,
            metrics=metrics,
            audited=stored is None,
            promoted=promote if all(check.passed for check in checks) else None,
            messages=messages,
        )
        _write(store, result, tag=tag)
    return result


def read_rule(text: str) -> Rule:
    """Parse ``METRIC OP NUMBER``.

    Raises
    ------
    RequestError
        It is something else; the message shows the form.
    """
    parts = _RULE.fullmatch(text)
    try:
        bound = float(parts[4]) if parts is not None else math.nan
    except ValueError:
        bound = math.nan
    if parts is None or not math.isfinite(bound):
        raise RequestError(
            f"rule {text!r}: not METRIC OP NUMBER; write it like 'k_median >= 20', OP one of {' '.join(_OPERATORS)}"
        )
    return Rule(parts[1], parts[3], bound)


def read_policy(path: str | Path) -> tuple[Rule, ...]:
    """Rules from a TOML file: ``[require]`` with ``METRIC = "OP NUMBER"``, or a list of such bounds.

    Raises
    ------
    RequestError
        The file is missing, is no TOML, or holds anything else.
    """
    what, toml = f"policy {path}", _toml()
    try:
        content = toml.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{what}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:  # both modules' TOMLDecodeError, and text that is not UTF-8
        raise RequestError(f'{what}: not TOML ({error}); write [require] and lines like k_median = ">= 20"') from error
    required = content.pop("require", None)
    if content:
        raise RequestError(f"{what}: does not know {', '.join(content)}; it takes one table, [require]")
    if not isinstance(required, dict) or not required:
        raise RequestError(f'{what}: has no rule; write [require] and lines like k_median = ">= 20"')
    rules = []
    for metric, bounds in required.items():
        for bound in bounds if isinstance(bounds, list) and bounds else [bounds]:
            if not isinstance(bound, str) or not _BOUND.fullmatch(bound):
                raise RequestError(f'{what}: got {metric} = {bound!r}; write it like {metric} = ">= 20"')
            rules.append(read_rule(f"{metric} {bound}"))
    return tuple(rules)


def _toml() -> Any:
    """The TOML reader of Python 3.11, or the package it came from."""
    for name in ("tomllib", "tomli"):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    raise RequestError("policy: Python 3.10 cannot read TOML; pip install tomli, or give the rules with --require")


def _stored(
    store: Store, resolved: ResolvedModel, threshold: float | None
) -> tuple[dict[str, float], tuple[str, ...]] | None:
    """Metrics and messages of the model's stored audit; None without one that is whole and of this model."""
    if resolved.run_id is None:
        return None
    with TemporaryDirectory(prefix="relabel-audit-") as folder:
        summary = tracking.read_summary(store, resolved.run_id, Path(folder))
    if summary is None or summary["model_id"] != resolved.model_id:
        return None
    if threshold is not None and summary["threshold"] != threshold:
        return None
    return dict(summary["metrics"]), tuple(summary["messages"])


def _audited(
    resolved: ResolvedModel, request: Callable[..., AuditResult], *, rows_named: bool
) -> tuple[dict[str, float], tuple[str, ...]]:
    # By version: whoever moves the alias meanwhile does not change which model is judged.
    uri = f"models:/{resolved.registered_name}/{resolved.version}"
    try:
        result = request(model_uri=uri, log=resolved.run_id is not None)
    except RequestError as error:
        if not rows_named:
            raise type(error)(
                f"{uri} has no stored audit of this model and threshold to judge it by; {error}"
            ) from error
        raise
    return dict(result.summary), result.messages


def _write(store: Store, result: GateResult, *, tag: bool) -> None:
    """Tag the version, the verdict last, then move the alias."""
    name, version, client = result.name, result.version, store.client
    try:
        with failures(f"tagging {name} version {version}"):
            if tag:
                client.set_model_version_tag(name, version, REASON, result.reason)
                client.set_model_version_tag(name, version, VERDICT, "pass" if result.passed else "fail")
        if result.promoted is not None:
            with failures(f"alias {result.promoted} of {name}"):
                client.set_registered_model_alias(name, result.promoted, version)
    except PermissionDeniedError as error:
        raise StoreError(
            f"registered model {name}: this user may not write to it; the verdict is "
            f"{'pass' if result.passed else 'fail'} ({result.reason}); ask for EDIT rights, or judge with --no-tag"
        ) from error
