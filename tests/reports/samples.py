"""Results as the analyses give them, made by hand: a page must not depend on how they were computed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd

from mlflow_relabel_audit.analyses.bias import BiasResult, bias_audit
from mlflow_relabel_audit.analyses.compare import CompareResult, compare
from mlflow_relabel_audit.analyses.findings import Finding
from mlflow_relabel_audit.analyses.flip_table import FlipTable
from mlflow_relabel_audit.reports import ReportContext

N_TRAIN = 426

CONTEXT = ReportContext(
    model_name="tumour-screening",
    model_uri="models:/tumour-screening/3",
    model_version="3",
    run_id="0f3c2d6b9a1e4a5f8b7c6d5e4f3a2b1c",
    tracking_uri="sqlite:///mlflow.db",
    train_source="breast_cancer_train.parquet",
    eval_source="breast_cancer_test.parquet",
    n_train=N_TRAIN,
    n_eval=143,
    n_features=30,
    threshold=0.5,
    class_names=("malignant", "benign"),
    package_version="0.1.0",
    generated_at="2025-06-01 12:00 UTC",
)


def robustness_result(
    n: int = 143, n_train: int = N_TRAIN, seed: int = 0, names=("malignant", "benign"), missing: float = 0.0
) -> SimpleNamespace:
    """Return a robustness result with the shape of a real one: k grows with the margin."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(1.0, 3.2, n)
    probability = 1 / (1 + np.exp(-margin))
    k = np.clip(np.round(np.abs(margin) * n_train * 0.012 * np.exp(rng.normal(0, 0.45, n))), 1, n_train // 2)
    lower = np.maximum(1, np.floor(k * rng.uniform(0.5, 1.0, n)))
    paper = np.where(rng.random(n) < 0.25, np.nan, np.round(k * rng.uniform(1.0, 4.0, n)))
    lost = rng.random(n) < missing
    positive = margin >= 0
    label = np.where(rng.random(n) < 0.04, ~positive, positive)
    shown = pd.array(np.where(lost, np.nan, k), dtype="Int64")
    predictions = pd.DataFrame(
        {
            "row_id": np.arange(1000, 1000 + n),
            "label": np.where(label, names[1], names[0]),
            "predicted": np.where(positive, names[1], names[0]),
            "probability": probability,
            "margin": margin,
            "k_paper": pd.array(paper, dtype="Int64"),
            "k_estimate": shown,
            "k": shown,
            "k_lower": pd.array(np.where(lost, np.nan, lower), dtype="Int64"),
            "fraction": np.where(lost, np.nan, k / n_train),
            "status": np.where(lost, "not_flippable", "verified"),
            "correct": pd.array(label == positive, dtype="boolean"),
        }
    )
    rows = []
    pool = rng.permutation(n_train)
    for row in predictions.itertuples():
        if row.k is pd.NA:
            continue
        size = int(row.k)
        train = np.unique(np.minimum(rng.exponential(n_train / 6, size * 2).astype(int), n_train - 1))[:size]
        for rank, at in enumerate(train, start=1):
            positive_row = bool(at % 2)
            rows.append(
                (
                    row.row_id,
                    rank,
                    int(pool[at]),
                    names[positive_row],
                    names[not positive_row],
                    -row.margin / size * 1.02,
                )
            )
    flip_sets = pd.DataFrame(rows, columns=["row_id", "rank", "train_id", "train_label", "new_label", "influence"])
    summary = {"k_median": float(np.median(k)) if n else float("nan")}
    return SimpleNamespace(predictions=predictions, sets=FlipTable.of(flip_sets), flip_sets=flip_sets, summary=summary)


def with_context(**changes) -> ReportContext:
    return replace(CONTEXT, **changes)


def contest_result(k: int = 6, n_train: int = N_TRAIN, removal: bool = True, **changes) -> SimpleNamespace:
    """Return a contest of a benign prediction that k labels flip."""
    margin = 1.9
    influence = -1.04 * margin * np.linspace(2, 1, k) / np.linspace(2, 1, k).sum() if k else np.zeros(0)
    train_ids = np.arange(k) * 7 + 11
    cumulative = margin + np.cumsum(influence)
    flip_set = pd.DataFrame(
        {
            "rank": np.arange(1, k + 1),
            "train_id": train_ids,
            "train_label": "benign",
            "new_label": "malignant",
            "influence": influence,
            "cumulative_margin": cumulative,
            "cumulative_probability": 1 / (1 + np.exp(-cumulative)),
        }
    )
    fields = {
        "row_id": 1042,
        "label": "malignant",
        "predicted": "benign",
        "wanted": "malignant",
        "any_change": True,
        "probability": 1 / (1 + np.exp(-margin)),
        "margin": margin,
        "threshold": 0.5,
        "k": k or None,
        "k_lower": max(1, k - 2),
        "k_paper": 2 * k,
        "status": "verified" if k else "not_flippable",
        "flip_set": flip_set,
        "margin_after": -0.06 if k else None,
        "probability_after": 0.485 if k else None,
        "removal": SimpleNamespace(
            k=k + 9,
            removal_set=pd.DataFrame({"train_id": np.arange(k + 9) * 7 + 4, "rank": np.arange(1, k + 10)}),
            margin_after=-0.02,
            probability_after=0.495,
            found=True,
        )
        if removal
        else None,
        "n_train": n_train,
    }
    return SimpleNamespace(**{**fields, **changes})


def feature_rows(ids, seed: int = 0) -> pd.DataFrame:
    """Return rows of measurements and one category under the given ids."""
    rng = np.random.default_rng(seed)
    names = [
        "mean radius",
        "mean texture",
        "mean area",
        "mean smoothness",
        "worst concavity",
        "worst symmetry",
    ]
    frame = pd.DataFrame(rng.normal(10, 2, (len(ids), len(names))).round(2), columns=names, index=list(ids))
    frame["clinic"] = rng.choice(["north", "south"], len(ids))
    return frame


def text_rows(ids, seed: int = 0) -> pd.DataFrame:
    """Return rows of running text under the given ids."""
    rng = np.random.default_rng(seed)
    words = (
        "subscribe",
        "channel",
        "free",
        "music",
        "win",
        "phone",
        "this",
        "song",
        "is",
        "great",
        "love",
        "the",
    )
    return pd.DataFrame({"text": [" ".join(rng.choice(words, 24)) for _ in ids]}, index=list(ids))


def noise_result(n: int = N_TRAIN, n_suspects: int = 24, seed: int = 0, **changes) -> SimpleNamespace:
    """Return a noise result in which a few labels stand out."""
    rng = np.random.default_rng(seed)
    score = np.clip(rng.beta(0.4, 12, n), 0, 0.19)
    score[:n_suspects] = np.linspace(0.98, 0.22, n_suspects)
    positive = rng.random(n) < 0.6
    names = np.array(CONTEXT.class_names, dtype=object)
    flagged = np.arange(n) < n_suspects
    scores = pd.DataFrame(
        {
            "train_id": rng.permutation(n),
            "label": names[positive.astype(int)],
            "suggested_label": names[(positive ^ flagged).astype(int)],
            "score": score,
            "probability_out_of_sample": np.where(positive ^ flagged, 1 - score, score),
            "flip_set_count": pd.array(rng.integers(0, 60, n), dtype="Int64"),
        }
    )
    suspects = scores[flagged].sort_values("score", ascending=False)
    suspects = suspects.assign(level=np.where(suspects["score"] > 0.5, "sure", "check")).reset_index(drop=True)
    rate = (0.058, 0.031, 0.094) if n_suspects else (0.006, 0.0, 0.021)
    message = "Label noise: an estimated 5.8% of the labels (95 % interval 3.1% to 9.4%) are wrong."
    fields = {
        "scores": scores,
        "suspects": suspects,
        "noise_rate": rate,
        "summary": {"noise_rate": rate[0], "suspect_count": float(n_suspects)},
        "findings": (
            Finding("N002", "warning", message)
            if n_suspects
            else Finding("N001", "info", "Consistent with no label noise: the estimate is 0.6%."),
            Finding("N005", "info", "The rate is read off the training labels alone.", applicable=False),
        ),
    }
    return SimpleNamespace(**{**fields, **changes})


def bias_result(n: int = 400, n_train: int = N_TRAIN, eval_groups: bool = True, names=("north", "south")) -> BiasResult:
    """Return the bias audit of a robustness result, its groups dealt at random."""
    rng = np.random.default_rng(0)
    result = robustness_result(n, n_train)
    train = pd.DataFrame({"clinic": rng.choice(names, n_train), "age": rng.choice(["old", "young"], n_train)})
    given = pd.DataFrame({"clinic": rng.choice(names, n), "age": rng.choice(["old", "young"], n)})
    return bias_audit(
        result.predictions,
        result.flip_sets,
        train,
        given.set_index(result.predictions["row_id"]) if eval_groups else None,
        pd.Series(np.where(rng.random(n_train) < 0.6, "benign", "malignant")),
        row_sets={"one batch": np.arange(n_train) < n_train // 4},
        permutations=39,
    )


def bias_result_of_classes(n: int = 300, n_train: int = N_TRAIN, names=("low", "mid", "high")) -> BiasResult:
    """Return the bias audit of three classes, groups dealt at random and one class expected too rarely."""
    rng = np.random.default_rng(0)
    chance = rng.dirichlet(np.ones(3), n)
    truth = np.array([rng.choice(3, p=p) for p in chance])
    sets = [rng.choice(n_train, rng.integers(1, 9), replace=False) for _ in range(n)]
    names = np.array(names)
    predictions = pd.DataFrame(
        {
            "row_id": np.arange(n),
            "label": names[truth],
            "predicted": names[chance.argmax(axis=1)],
            "flips_to": names[np.argsort(chance, axis=1)[:, 1]],
            "probability": chance.max(axis=1),
            "margin": 1.0,
            "k": pd.array([len(part) for part in sets], dtype="Int64"),
            "status": "verified",
        }
    )
    flip_sets = pd.DataFrame({"row_id": np.repeat(np.arange(n), [*map(len, sets)]), "train_id": np.concatenate(sets)})
    group = [pd.Series(rng.choice(["north", "south"], size), name="clinic") for size in (n_train, n)]
    chance[group[1] == "north", 0] *= 0.4
    labels = rng.choice(names, n_train)
    options = {"classes": tuple(names), "probabilities": chance, "permutations": 39}
    return bias_audit(predictions, flip_sets, *group, labels, **options)


def thousand_groups() -> SimpleNamespace:
    """Return a bias result of a thousand groups, more than the analysis would show."""
    result = bias_result()
    part = result.by_group_k[result.by_group_k["attribute"] == "clinic"]
    many = pd.concat([part.assign(group=[f"{g} {i}" for g in part["group"]]) for i in range(500)])
    cells = pd.concat([result.groups.head(8).assign(eval_group=f"clinic {i}", attribute="clinic") for i in range(1000)])
    changes = {"by_group_k": many.reset_index(drop=True), "groups": cells.reset_index(drop=True)}
    return SimpleNamespace(**{**vars(result), **changes})


def compare_result(n: int = 143, runs: int = 2, names=("C = 1", "C = 0.1", "C = 0.01", "C = 10")) -> CompareResult:
    """Return the comparison of audits that agree but for a few rows."""
    audits = {}
    for i, name in enumerate(names[:runs]):
        result = robustness_result(n)
        rng = np.random.default_rng(i)
        k = result.predictions["k"].astype(float) * np.exp(0.4 * i + rng.normal(0, 0.2 * i, n))
        result.predictions["k"] = k.round().clip(lower=1).astype("Int64")
        if i:
            result.predictions.loc[: n // 20, "predicted"] = "benign"
        audits[name] = (result.predictions, result.summary)
    return compare(audits)


def curve_result() -> SimpleNamespace:
    """Return a noise curve: k falls before accuracy does."""
    noise = np.linspace(0, 0.9, 10)
    k, accuracy = 40 * (1 - noise) ** 1.6, 0.95 - 0.4 * noise**4
    columns = {"noise": noise, "k_mean": k, "k_low": 0.9 * k, "k_high": 1.1 * k, "found_share": 1.0}
    intervals = {"accuracy": accuracy, "accuracy_low": accuracy - 0.02, "accuracy_high": accuracy + 0.02}
    finding = Finding("N010", "info", "Average k halves at 35 % noise, accuracy holds to 60 %.")
    return SimpleNamespace(table=pd.DataFrame({**columns, **intervals}), findings=(finding,))


def correction_result() -> SimpleNamespace:
    """Return what correcting the suspects buys."""
    rows = [("nothing", 0, 0.0, 0.0), ("relabel", 18, -0.031, 0.014), ("drop", 18, -0.017, 0.006)]
    table = pd.DataFrame(
        [
            {
                "action": action,
                "count": count,
                "loss": 0.21 + loss,
                "loss_change": loss,
                "loss_change_low": 1.4 * loss,
                "loss_change_high": 0.3 * loss,
                "accuracy": 0.93 + accuracy,
                "accuracy_change": accuracy,
                "accuracy_change_low": -0.2 * accuracy,
                "accuracy_change_high": 1.8 * accuracy,
                "rows": 72,
            }
            for action, count, loss, accuracy in rows
        ]
    )
    return SimpleNamespace(table=table, candidates=table, findings=())
