"""Analyses' results in, HTML and Markdown strings out; nothing here reads or writes files but templates."""

from mlflow_relabel_audit.reports.bias import render_bias
from mlflow_relabel_audit.reports.compare import render_compare
from mlflow_relabel_audit.reports.contest import render_contest
from mlflow_relabel_audit.reports.context import ReportContext
from mlflow_relabel_audit.reports.markdown import description_block, summary_markdown, verdict_sentence
from mlflow_relabel_audit.reports.noise import render_noise, suspects_for_review
from mlflow_relabel_audit.reports.robustness import render_robustness

__all__ = [
    "ReportContext",
    "description_block",
    "render_bias",
    "render_compare",
    "render_contest",
    "render_noise",
    "render_robustness",
    "summary_markdown",
    "suspects_for_review",
    "verdict_sentence",
]
