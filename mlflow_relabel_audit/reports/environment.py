"""The Jinja environment: escaping always on, a missing name is an error, templates are package resources."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from mlflow_relabel_audit.reports import text

_TEMPLATES = "mlflow_relabel_audit.templates"


def _source(name: str) -> str | None:
    resource = resources.files(_TEMPLATES)
    for part in name.split("/"):
        resource = resource / part
    return resource.read_text(encoding="utf-8") if resource.is_file() else None


@cache
def environment() -> Environment:
    """Return the one environment that all reports share."""
    env = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters.update(
        bdi=text.bdi,
        count=text.count,
        island=text.island,
        number=text.number,
        percent=text.percent,
        plural=text.plural,
        probability=text.probability,
        short=text.short,
        visible=text.visible,
    )
    env.tests["finite"] = text.is_finite
    return env


def render(name: str, **values: Any) -> str:
    """Return template ``name`` filled with ``values``."""
    return environment().get_template(name).render(**values)
