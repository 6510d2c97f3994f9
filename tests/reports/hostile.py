"""Results in which every text is hostile: ids, labels, class names, messages, rows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd

from mlflow_relabel_audit.analyses.findings import Finding
from mlflow_relabel_audit.analyses.flip_table import FlipTable
from mlflow_relabel_audit.reports import ReportContext
from tests.reports.samples import (
    bias_result,
    compare_result,
    contest_result,
    noise_result,
    robustness_result,
    with_context,
)

CANARY = "window.relabelCanary=1"
HOSTILE = (
    f"<script>{CANARY}</script>",
    f'"><img src=x onerror="{CANARY}">',
    f"</script><script>{CANARY}</script>",
    f"<svg onload={CANARY}><a href='javascript:{CANARY}'>",
    f"<!--<script>{CANARY}",
    f"' onmouseover='{CANARY}' autofocus onfocus='{CANARY}",
    "{{ 1234567*9 }}{% raw %}{# no #}",
    "\u202eright to left\u2066 isolate",
    "zero\u200bwidth\u00adhyphen\ufeff",
    "$x^2$ \\frac{1}{2}",
    "nul\x00 lone \ud800 surrogate",
    "line\u2028separator\nnewline",
    "e" + "\u0301" * 200,
    "x" * 1_000_000,
)


def objects(values, index=None) -> pd.Series:
    """Return texts as an object column; pandas' own strings hold no lone surrogates."""
    return pd.Series(list(values), dtype=object, index=index)


def hostile_context() -> ReportContext:
    """Return a context in which every text is hostile, rows included."""
    ids = [f"{text[:200]} #{i}".replace("\ud800", "") for i, text in enumerate(HOSTILE)]
    index = pd.Index(ids, dtype=object)
    passages = ("some words that are long enough to be running text " + t for t in HOSTILE)
    rows = pd.DataFrame(
        {
            HOSTILE[0]: objects(HOSTILE, index),
            HOSTILE[1]: np.arange(len(HOSTILE), dtype=float),
            "plain text": objects(passages, index),
        },
        index=index,
    )
    return with_context(
        model_name=HOSTILE[0],
        model_uri=HOSTILE[1],
        model_version=HOSTILE[2],
        run_id=HOSTILE[3],
        tracking_uri=HOSTILE[4],
        train_source=HOSTILE[5],
        eval_source=HOSTILE[-1],
        class_names=(HOSTILE[6] + HOSTILE[0], HOSTILE[9] + HOSTILE[1]),
        package_version=HOSTILE[0],
        generated_at=HOSTILE[1],
        messages=HOSTILE,
        include_rows=True,
        train_rows=rows,
        eval_rows=rows,
    )


def hostile_robustness() -> SimpleNamespace:
    """Return a robustness result in which ids and labels are hostile."""
    context = hostile_context()
    result = robustness_result(n=len(HOSTILE), names=context.class_names)
    ids = list(context.train_rows.index)
    predictions = result.predictions.assign(row_id=objects(ids))
    flip_sets = result.flip_sets.assign(
        row_id=objects(ids[int(i) - 1000] for i in result.flip_sets["row_id"]),
        train_id=objects(ids[int(i) % len(ids)] for i in result.flip_sets["train_id"]),
    )
    sets = FlipTable.of(flip_sets)
    return SimpleNamespace(predictions=predictions, sets=sets, flip_sets=flip_sets, summary=result.summary)


def hostile_contest() -> SimpleNamespace:
    """Return a contest in which ids and labels are hostile."""
    context = hostile_context()
    ids = list(context.train_rows.index)
    result = contest_result(k=len(ids))
    negative, positive = context.class_names
    flip_set = result.flip_set.assign(train_id=objects(ids), train_label=positive, new_label=negative)
    removal = SimpleNamespace(**{**vars(result.removal), "removal_set": pd.DataFrame({"train_id": objects(ids)})})
    changes = {"flip_set": flip_set, "removal": removal, "row_id": ids[0], "label": HOSTILE[0]}
    return SimpleNamespace(**{**vars(result), **changes, "predicted": positive})


def hostile_noise() -> SimpleNamespace:
    """Return a noise result in which ids, labels and messages are hostile."""
    context = hostile_context()
    result = noise_result(n=len(HOSTILE), n_suspects=len(HOSTILE))
    ids = list(context.train_rows.index)
    findings = tuple(Finding("N002", "warning", message) for message in HOSTILE)
    changes = {
        "train_id": objects(ids),
        "label": context.class_names[0],
        "suggested_label": context.class_names[1],
    }
    return SimpleNamespace(
        **{
            **vars(result),
            "scores": result.scores.assign(**changes),
            "suspects": result.suspects.assign(**changes),
            "findings": findings,
        }
    )


def hostile_bias() -> SimpleNamespace:
    """Return a bias result in which group names, ids and messages are hostile."""
    result = bias_result(names=HOSTILE[:2])
    findings = tuple(Finding("B001", "critical", message) for message in HOSTILE)
    drivers = result.drivers.assign(train_id=HOSTILE[2], train_group=HOSTILE[3])
    return SimpleNamespace(**{**vars(result), "findings": findings, "drivers": drivers})


def hostile_compare() -> SimpleNamespace:
    """Return a comparison of runs with hostile names."""
    result = compare_result(names=HOSTILE[:2])
    findings = tuple(Finding("C001", "info", message) for message in HOSTILE)
    shared = result.shared.assign(row_id=[f"{HOSTILE[i % 10]} {i}" for i in range(len(result.shared))])
    return SimpleNamespace(**{**vars(result), "findings": findings, "shared": shared})
