"""The audit in Markdown: a summary as an artifact, and the short block in the run's description."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mlflow_relabel_audit.reports import text
from mlflow_relabel_audit.reports.context import CLASSES_SHOWN, ReportContext
from mlflow_relabel_audit.reports.robustness import read, verdict

if TYPE_CHECKING:
    from mlflow_relabel_audit.analyses.robustness import RobustnessResult

_WORDS = {
    "robustness.html": "how fragile each prediction is",
    "noise.html": "labels that are probably wrong",
    "bias.html": "whose labels drive whose errors",
    "summary.md": "the summary in figures",
    "predictions.json": "every prediction as a table",
    "suspects.csv": "suspect labels, for an annotator",
}


def escaped(value: object, limit: int = text.CELL_LIMIT) -> str:
    """Return text from the data as Markdown that shows it literally, on one line."""
    shown = re.sub(r"\s+", " ", text.visible(value, limit)).strip()
    shown = re.sub(r"([\\`*_\[\]<>~|&#$!@])", r"\\\1", shown)
    return shown.replace("://", "\\://").replace("www.", "www\\.")  # not a link either


def verdict_sentence(result: RobustnessResult, context: ReportContext) -> str:
    """Return the verdict of the robustness audit as one plain sentence."""
    return verdict(read(result.predictions, context), context).sentence


def summary_markdown(
    context: ReportContext,
    robustness: RobustnessResult | None = None,
    *analyses: Any,
) -> str:
    """Return summary.md: the verdict, the findings and metrics of each analysis, what was audited and the notes.

    ``analyses`` are results with ``findings``, a ``summary`` or both; None where one was not made.
    """
    name = escaped(context.model_name)
    if context.model_version:
        name += f" version {escaped(context.model_version)}"
    lines = [f"# Relabelling audit of {name}", ""]
    if robustness is not None:
        first = verdict(read(robustness.predictions, context), context)
        lines += [f"**{first.word}.** {first.sentence} {first.meaning}".rstrip(), ""]
    for result in analyses:
        for finding in getattr(result, "findings", ()):
            lines += [f"* {escaped(finding.message, 1000)}"]
    if lines[-1]:
        lines.append("")
    metrics: dict[str, Any] = {}
    for part in (robustness, *analyses):
        metrics.update(getattr(part, "summary", {}) or {})
    if metrics:
        lines += ["| metric | value |", "|---|---:|"]
        lines += [f"| {escaped(key)} | {_metric(value)} |" for key, value in metrics.items()]
        lines.append("")
    lines += [
        "| what was audited | |",
        "|---|---|",
        f"| model | {escaped(context.model_uri, 400)} |",
        f"| training data | {escaped(context.train_source, 400)}: {context.n_train:,} rows, "
        f"{text.plural(context.n_features, 'feature')} |",
        f"| evaluated data | {escaped(context.eval_source, 400)}: {text.plural(context.n_eval, 'row')} |",
        f"| decision | {_decision(context)} |",
        f"| made by | mlflow-relabel-audit {escaped(context.package_version)}, {escaped(context.generated_at)} |",
        "",
    ]
    if context.messages:
        lines += ["Notes from the audit:", "", *(f"* {escaped(m, 1000)}" for m in context.messages), ""]
    return "\n".join(lines)


def _decision(context: ReportContext) -> str:
    """Return the rule by which a class is predicted."""
    if context.several:
        shown = ", ".join(escaped(name, 40) for name in context.class_names[:CLASSES_SHOWN])
        more = len(context.class_names) - CLASSES_SHOWN
        return f"the most probable of {shown}" + (f" and {more} more" if more > 0 else "")
    return f"{escaped(context.class_names[1])} where its probability is above {context.threshold:g}"


def _metric(value: Any) -> str:
    if not text.is_finite(value):
        return text.MISSING
    value = float(value)
    return f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"


def description_block(
    context: ReportContext, experiment_id: str, run_id: str, artifacts: Sequence[str], sentence: str
) -> str:
    """Return the block for the run's description: the verdict and a link to each report.

    Parameters
    ----------
    experiment_id, run_id : str
        Where the artifacts are; MLflow's own address of a file in the Artifacts tab is built from them.
    artifacts : sequence of str
        Artifact paths under ``relabel_audit/``, for example ``robustness.html``; those without a preview
        in MLflow (Parquet, npz) are left out.
    sentence : str
        The verdict, plain text.
    """
    run = f"#/experiments/{quote(experiment_id, safe='')}/runs/{quote(run_id, safe='')}"
    base = f"{run}/artifacts/relabel_audit/"
    shown = [a for a in artifacts if a.endswith((".html", ".md", ".csv", "predictions.json"))]
    order = list(_WORDS)
    shown.sort(key=lambda a: (order.index(a) if a in order else len(order), a))
    lines = [f"**Relabelling audit.** {escaped(sentence, 400)}", ""]
    for path in shown[:20]:
        words = _WORDS.get(path)
        lines.append(f"* [{escaped(path)}]({base}{quote(path)})" + (f": {words}" if words else ""))
    if len(shown) > 20:
        lines.append(f"* and {len(shown) - 20} more under relabel\\_audit")
    return "\n".join(lines)
