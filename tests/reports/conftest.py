"""Results for every page's tests."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mlflow_relabel_audit.reports import ReportContext
from tests.reports.samples import CONTEXT, robustness_result


@pytest.fixture
def context() -> ReportContext:
    return CONTEXT


@pytest.fixture
def robustness() -> SimpleNamespace:
    return robustness_result()
