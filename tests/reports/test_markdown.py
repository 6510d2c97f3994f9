"""The Markdown that MLflow renders: a summary, and the block in the run's description."""

from __future__ import annotations

from mlflow_relabel_audit.reports import description_block, summary_markdown, verdict_sentence
from mlflow_relabel_audit.reports.markdown import escaped
from tests.reports.hostile import HOSTILE, hostile_context
from tests.reports.samples import CONTEXT, noise_result, robustness_result, with_context


def test_the_summary_holds_verdict_metrics_and_what_was_audited():
    result = robustness_result()
    summary = summary_markdown(with_context(messages=("a note",)), result, noise_result())
    assert verdict_sentence(result, CONTEXT) in summary
    assert "| k\\_median | 11 |" in summary
    assert "| noise\\_rate | 0.058 |" in summary
    assert "Consistent" not in summary
    assert "* a note" in summary
    assert summary.endswith("\n")


def test_text_from_the_data_adds_no_markdown():
    summary = summary_markdown(hostile_context(), robustness_result())
    for line in summary.splitlines():
        unescaped = line.replace("\\|", "").replace("\\<", "").replace("\\[", "").replace("\\`", "")
        assert unescaped.count("|") in (0, 3)
        assert "<" not in unescaped
        assert "[" not in unescaped
    assert escaped("[x](javascript:alert(1)) https://evil.example www.evil.example a@b.c\n# h") == (
        "\\[x\\](javascript:alert(1)) https\\://evil.example www\\.evil.example a\\@b.c \\# h"
    )
    assert len(summary) < 30_000
    assert "\u202e" not in summary
    assert HOSTILE[-1] not in summary


def test_the_block_links_to_what_mlflow_can_show():
    paths = ["hessian.npz", "predictions.parquet", "predictions.json", "noise.html", "robustness.html"]
    block = description_block(CONTEXT, "12", "ab34", [*paths, "contest/row 7.html"], "It stands.")
    lines = block.splitlines()
    assert lines[0] == "**Relabelling audit.** It stands."
    base = "#/experiments/12/runs/ab34/artifacts/relabel_audit/"
    assert [line.split("](")[1].split(")")[0] for line in lines[2:]] == [
        f"{base}robustness.html",
        f"{base}noise.html",
        f"{base}predictions.json",
        f"{base}contest/row%207.html",
    ]


def test_the_block_stays_short():
    paths = [f"contest/{i}.html" for i in range(500)]
    block = description_block(CONTEXT, "1", "r" * 32, paths, "x" * 5000)
    assert len(block) < 4000
    assert "and 480 more" in block
