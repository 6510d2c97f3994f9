"""The bias audit on injected bias, on real groups, and on clean data, where it must keep silent.

    python -m benchmarks.bias --data DIR [--quick] [--seeds 200] [--nulls SET ...] [--verify]

DIR holds ``loan_{train,test}.parquet`` and ``adult_{train,test}.parquet``; a set whose files are missing is
skipped and named. Writes ``benchmarks/out/bias.json`` and ``bias.md``; each seed of a null is a line of
``benchmarks/out/bias/NULL.jsonl`` and is not drawn again, so that a long run can be stopped.

* Separation (Yang, Xu and Yu 2024): a random tag X for 40 % of the rows, Y for the others; 90 % of the
  training rows of tag X with label 0 are relabelled 1. The share of the relabelled rows in the flip sets of
  misclassified tag X against tag Y. The same with sex on Adult in place of the tag, in both directions.
* Null: fresh tags, fresh draws of training and evaluation rows, no relabelling. How often an alarm is raised.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_relabel_audit import Auditor
from mlflow_relabel_audit.analyses.bias import BiasResult

NUMBERS = {
    "loan": ["Income", "Age", "Experience", "CURRENT_JOB_YRS", "CURRENT_HOUSE_YRS"],
    "adult": ["age", "education_num", "capital_gain", "capital_loss", "hours_per_week"],
}
WORDS = {
    "loan": ["Married/Single", "House_Ownership", "Car_Ownership", "Profession", "CITY", "STATE"],
    "adult": [
        "workclass",
        "education",
        "marital_status",
        "occupation",
        "relationship",
        "race",
        "native_country",
    ],
}
L2 = {"loan": 100.0, "adult": 10.0}
EVALUATION = 2800


@dataclass(frozen=True)
class Injection:
    """Relabel ``share`` of the training rows of group ``target`` that have label ``label``."""

    data: str
    attribute: str
    target: str
    label: int
    paper: str = ""
    share: float = 0.9


INJECTIONS = (
    Injection("loan", "tag", "X", 0, paper="60 / 23"),
    Injection("adult", "tag", "X", 0),
    Injection("adult", "sex", "Female", 1),
    Injection("adult", "sex", "Female", 0),
)
NULLS = (("loan", "tag", True), ("loan", "tag", False), ("adult", "sex", True), ("adult", "tag", True))


def groups_of(frames: list[pd.DataFrame], attribute: str, rng: np.random.Generator) -> list[np.ndarray]:
    if attribute == "tag":
        return [np.where(rng.random(len(frame)) < 0.4, "X", "Y") for frame in frames]
    return [frame[attribute].to_numpy(dtype=object) for frame in frames]


def fit(name: str, train: pd.DataFrame, y: np.ndarray, group: bool) -> Any:
    columns = [*WORDS[name], *(["group"] if group else [])]
    encoder = OneHotEncoder(handle_unknown="ignore", min_frequency=5)
    features = make_column_transformer((StandardScaler(), NUMBERS[name]), (encoder, columns), sparse_threshold=0)
    return make_pipeline(features, LogisticRegression(C=1 / L2[name], max_iter=3000, tol=1e-6)).fit(train, y)


def audit(
    name: str,
    frames: list[pd.DataFrame],
    groups: list[np.ndarray],
    y: np.ndarray,
    *,
    feature: bool = True,
    verify: bool = False,
    row_sets: dict[str, np.ndarray] | None = None,
    seed: int = 0,
) -> tuple[BiasResult, dict[str, float]]:
    train, test = (frame.assign(group=group) for frame, group in zip(frames, groups, strict=True))
    started = time.perf_counter()
    auditor = Auditor(fit(name, train, y, feature), train, y)
    fitted = time.perf_counter()
    result = auditor.robustness(test, test["label"].to_numpy(), verify=verify, certify=False)
    searched = time.perf_counter()
    found = auditor.bias(
        pd.DataFrame({"group": groups[0]}),
        test,
        test["label"].to_numpy(),
        pd.DataFrame({"group": groups[1]}),
        result=result,
        row_sets=row_sets,
        seed=seed,
    )
    seconds = {
        "fit": fitted - started,
        "flips": searched - fitted,
        "bias": time.perf_counter() - searched,
    }
    return found, seconds


def separation(folder: Path, case: Injection, seed: int, verify: bool) -> dict[str, Any]:
    frames = [pd.read_parquet(folder / f"{case.data}_{part}.parquet") for part in ("train", "test")]
    frames[1] = frames[1].iloc[:EVALUATION]
    rng = np.random.default_rng(seed)
    groups = groups_of(frames, case.attribute, rng)
    y = frames[0]["label"].to_numpy().copy()
    pool = np.flatnonzero((y == case.label) & (groups[0] == case.target))
    changed = np.zeros(len(y), dtype=bool)
    changed[rng.choice(pool, round(case.share * len(pool)), replace=False)] = True
    y[changed] = 1 - case.label
    found, seconds = audit(case.data, frames, groups, y, verify=verify, row_sets={"relabelled": changed}, seed=seed)
    rows = found.row_sets[(found.row_sets["outcome"] == "misclassified") & (found.row_sets["eval_group"] != "(all)")]
    return {
        "data": case.data,
        "attribute": case.attribute,
        "target": case.target,
        "from": case.label,
        "seed": seed,
        "base_rate": float(changed.mean()),
        "groups": rows[
            ["eval_group", "n_predictions", "share", "share_low", "share_high", "share_pooled", "lift"]
        ].to_dict(orient="records"),
        "alarms": [f.message for f in found.findings if f.level != "info"],
        "seconds": seconds,
        "paper": case.paper,
    }


def null(folder: Path, name: str, attribute: str, feature: bool, seeds: int, rows: int, kept: Path) -> dict[str, Any]:
    """Draw training and evaluation rows anew for every seed, relabel nothing, count what is raised.

    Each seed is a line of a file in ``kept`` and is not drawn again, so that a long run can be stopped.
    """
    both = [pd.read_parquet(folder / f"{name}_{part}.parquet") for part in ("train", "test")]
    pooled = pd.concat(both, ignore_index=True)
    lines = kept / f"null-{name}-{attribute}-{'seen' if feature else 'hidden'}-{rows}.jsonl"
    kept.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()] if lines.exists() else []
    for seed in range(len(records), seeds):
        rng = np.random.default_rng(seed)
        drawn = rng.choice(len(pooled), rows + rows // 4, replace=False)
        frames = [pooled.iloc[drawn[:rows]], pooled.iloc[drawn[rows:]]]
        groups = groups_of(frames, attribute, rng)
        y = frames[0]["label"].to_numpy()
        found, _ = audit(name, frames, groups, y, feature=feature, seed=seed)
        compared = found.by_group_k[found.by_group_k["group"] != "(all)"]
        records.append(
            {
                "alarm": found.summary["bias_alarms"] > 0,
                "excess": bool((compared["excess_p_adjusted"] < 0.05).any()),
                "excess_each": float((compared["excess_p"] < 0.05).mean()),
                "lift": bool((found.groups["p_adjusted"] < 0.05).any()),
            }
        )
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(records[-1]) + "\n")
    frame = pd.DataFrame(records[:seeds])
    return {
        "data": name,
        "attribute": attribute,
        "feature": feature,
        "seeds": seeds,
        "rows": rows,
        **frame.astype(float).mean().to_dict(),
    }


def summarise(separations: list[dict[str, Any]], nulls: list[dict[str, Any]]) -> str:
    lines = [
        "Share of the relabelled rows in the flip sets of misclassified predictions (mean over "
        "predictions; pooled in brackets), first seed",
        "",
        "| data | relabelled | base rate | group: share, interval (pooled), n | paper | alarms |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in separations:
        cells = "; ".join(
            f"{g['eval_group']}: {g['share']:.3f}, {g['share_low']:.3f} to {g['share_high']:.3f} "
            f"({g['share_pooled']:.3f}), n {g['n_predictions']}"
            for g in case["groups"]
        )
        lines.append(
            f"| {case['data']} | {case['attribute']} {case['target']}, label {case['from']}, seed "
            f"{case['seed']} | {case['base_rate']:.3f} | {cells} | {case['paper']} | "
            f"{len(case['alarms'])} |"
        )
    lines += [
        "",
        "Nothing relabelled: share of seeds with an alarm; with errors in excess beyond chance (adjusted; "
        "each group alone); with a lift beyond chance",
        "",
        "| data | group | model sees it | seeds | alarm | excess | excess, each | lift |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {n['data']} | {n['attribute']} | {'yes' if n['feature'] else 'no'} | {n['seeds']} | "
        f"{n['alarm']:.3f} | {n['excess']:.3f} | {n['excess_each']:.3f} | {n['lift']:.3f} |"
        for n in nulls
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--quick", action="store_true", help="one seed of each injection, 20 of each null")
    parser.add_argument("--seeds", type=int, default=200, help="of each null")
    parser.add_argument("--rows", type=int, default=4000, help="training rows of each null")
    parser.add_argument("--nulls", nargs="+", metavar="SET", help="only the nulls of these sets, no injections")
    parser.add_argument("--verify", action="store_true", help="verified flip sets for the injections: slower")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args(arguments)
    seeds, repeats = (20, 1) if options.quick else (options.seeds, 3)
    warnings.simplefilter("ignore", ConvergenceWarning)
    there = {
        name for name in WORDS if all((options.data / f"{name}_{part}.parquet").exists() for part in ("train", "test"))
    }
    if not there:
        raise SystemExit(
            f"--data {options.data}: neither loan nor adult is there; pass the folder that holds their files"
        )
    for name in sorted(set(WORDS) - there):
        print(f"{name}: not in {options.data}, skipped")
    separations, nulls = [], []
    if options.nulls:
        there &= set(options.nulls)
    for case in () if options.nulls else INJECTIONS:
        for seed in range(repeats if case.data in there else 0):
            separations.append(separation(options.data, case, seed, options.verify))
            print(json.dumps(separations[-1]), flush=True)
    for name, attribute, feature in NULLS:
        if name in there:
            kept = options.output / "bias"
            nulls.append(null(options.data, name, attribute, feature, seeds, options.rows, kept))
            print(json.dumps(nulls[-1]), flush=True)
    text = summarise(separations, nulls)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "bias.md").write_text(text, encoding="utf-8")
    report = {"separation": separations, "null": nulls}
    (options.output / "bias.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
