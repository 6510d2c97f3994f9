"""The measured tables as Markdown, the paper's own figures beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.paper import intervals, stated
from benchmarks.paper.orders import METHODS
from benchmarks.paper.store import Key, Store

SHOWN = {"paper": "paper's", "tuned": "tuned"}


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; none where it has no rows."""
    rows = [f"| {' | '.join(row)} |" for row in body]
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows] if rows else ["Not run."]


def figure(estimate: dict[str, Any], digits: int = 2, scale: float = 1.0) -> str:
    """Show a value with its interval, ``0.93 (0.88-0.96)``."""
    if estimate["value"] is None:
        return "-"
    value, low, high = (scale * estimate[name] for name in ("value", "low", "high"))
    return f"{value:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def mean_of(values: Any) -> float | None:
    known = intervals.present(values)
    return float(known.mean()) if len(known) else None


def ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


def penalty(store: Store, key: Key) -> str:
    """Which penalty, by its value where it is known."""
    return f"{SHOWN[key.penalty]}, {store.settings(key)['l2']:g}"


def quality(store: Store) -> list[str]:
    rows = []
    for key, result in store.every("k"):
        paper = stated.QUALITY.get(key.set) if key.penalty == "paper" else None
        rows.append(
            [
                key.set,
                penalty(store, key),
                f"{result['rows']:,} x {result['columns']:,}",
                " / ".join(number(result["quality"][name], 3) for name in ("accuracy", "f1", "auc")),
                " / ".join(f"{value:.2f}" for value in paper) if paper else stated.NOT_STATED,
            ]
        )
    return markdown(("set", "l2", "training rows x columns", "accuracy / F1 / AUC", "paper"), rows)


def table_1(store: Store) -> list[str]:
    rows = []
    for key, result in store.every("mislabelled"):
        few, base = result["few"], result["planted"] / result["rows"]
        newly = [row for row in few if row["right_before"]]
        rows.append(
            [
                key.set,
                str(key.seed),
                f"{result['planted']:,} ({base:.1%})",
                f"{result['misclassified']} ({result['newly_misclassified']}), {result['asked']}",
                f"{len(few)} ({len(newly)})",
                figure(intervals.share([any(row["planted"]) for row in few])),
                figure(intervals.share([any(row["planted"]) for row in newly])),
                figure(intervals.mean(result["planted_share"])),
            ]
        )
    head = (
        "set", "seed", "mislabelled (base rate)", "misclassified (right before), asked",
        "flipped by one or two (right before)", "of these, with a planted row in the set",
        "of those right before", "planted share of all sets",
    )  # fmt: skip
    return markdown(head, rows)


def table_2(store: Store) -> list[str]:
    rows = []
    for key, result in store.every("published"):
        ours = store.read(Key(key.set, "k", key.penalty, key.seed))
        if ours is None:
            continue
        at = {row: t for t, row in enumerate(ours["row_id"])}
        same = [at[row] for row in result["row_id"] if row in at]
        k_ours, status = ([ours[name][t] for t in same] for name in ("k", "status"))
        both = [(ours["k"][at[row]], k) for row, k in zip(result["row_id"], result["k"], strict=True) if row in at]
        pairs = [(mine, theirs) for mine, theirs in both if mine is not None and theirs is not None]
        found = intervals.share([k is not None for k in result["k"]])
        leak, clean = (
            intervals.share([flip == 1.0 for flip in result[name]]) for name in ("flipped_leak", "flipped_clean")
        )
        sure = [one for one in ours["confirmed"] if not one["doubtful"]]
        good = sum(one["flips"] and not one["one_less_flips"] for one in sure)
        rows.append(
            [
                key.set,
                penalty(store, key),
                str(len(same)),
                figure(found),
                figure(leak),
                number(ratio(leak["value"], found["value"])),
                figure(clean),
                number(ratio(clean["value"], found["value"])),
                figure(intervals.share([one == "verified" for one in status])),
                f"{good} of {len(sure)}",
                number(mean_of([theirs for _, theirs in pairs]), 1),
                number(mean_of([mine for mine, _ in pairs]), 1),
                figure(intervals.mean(k_ours), 1),
                f"{len(result['smaller'])}, {sum(one['flips'] for one in result['smaller'])}",
            ]
        )
    head = (
        "set", "l2", "n", "published: found", "flipped, as published", "flipped / found", "flipped, clean refits",
        "flipped / found", "ours: found and flipped", "refits of scikit-learn agree", "mean k published",
        "ours, same rows", "ours, all rows", "published set smaller, of these flips when converged",
    )  # fmt: skip
    return markdown(head, rows)


def figure_2(store: Store) -> list[str]:
    rows = []
    for key, result in store.every("orders"):
        moved = {name: np.asarray(result["moved"][name], dtype=float) for name in METHODS}
        last = {name: figure(intervals.mean(values[:, -1]), 3) for name, values in moved.items()}
        middle = len(result["ks"]) // 2
        behind = [name for name in METHODS[1:] if moved[name][:, middle].mean() > moved[METHODS[0]][:, middle].mean()]
        rows.append(
            [
                key.set,
                penalty(store, key),
                str(len(result["row_id"])),
                str(result["ks"][-1]),
                *last.values(),
                ", ".join(behind) or "none",
            ]
        )
    return markdown(("set", "l2", "n", "k", *METHODS, "further than ours at a k in the middle"), rows)


def figure_3(store: Store) -> list[str]:
    rows = []
    for key, result in store.every("k"):
        k, n = result["k"], result["rows"]
        fraction = [None if one is None else one / n for one in k]
        distance = [abs(p - store.settings(key)["threshold"]) for p in result["probability"]]
        rows.append(
            [
                key.set,
                penalty(store, key),
                str(len(k)),
                figure(intervals.share([one == "verified" for one in result["status"]])),
                figure(intervals.median(k), 0),
                figure(intervals.mean(k), 1),
                figure(intervals.median(fraction), 2, 100.0),
                figure(intervals.share([False if one is None else one < stated.FRAGILE for one in fraction])),
                f"{max((one for one in fraction if one is not None), default=float('nan')):.1%}",
                figure(intervals.rank_correlation(k, distance)),
            ]
        )
    head = (
        "set", "l2", "n", "verified", "median k", "mean k", "median k / N, %", "share under 2 %", "largest k / N",
        "rank correlation of k with distance of the probability from the threshold",
    )  # fmt: skip
    return markdown(head, rows)


def pairs_of_features(store: Store, penalty_name: str) -> list[tuple[str, str, np.ndarray]]:
    """Pairs of feature sets of the same data, with k of both on the test rows they share, shape (2, rows)."""
    held = {key.set: result for key, result in store.every("k") if key.penalty == penalty_name}
    out = []
    for first in held:
        for second in held:
            if first < second and first.rpartition("-")[0] and first.rpartition("-")[0] == second.rpartition("-")[0]:
                a, b = (dict(zip(held[name]["row_id"], held[name]["k"], strict=True)) for name in (first, second))
                shared = [(a[row], b[row]) for row in a if b.get(row) is not None and a[row] is not None]
                if shared:
                    out.append((first, second, np.array(shared, dtype=float).T))
    return out


def figure_4(store: Store) -> list[str]:
    rows = []
    for name in SHOWN:
        for first, second, k in pairs_of_features(store, name):
            rows.append(
                [
                    first,
                    second,
                    SHOWN[name],
                    str(k.shape[1]),
                    figure(intervals.rank_correlation(*k)),
                    figure(intervals.median(k[0] / k[1])),
                    figure(intervals.share(k[0] < k[1])),
                ]
            )
    head = ("first", "second", "l2", "shared rows", "rank correlation", "median k first / second", "first smaller")
    return markdown(head, rows)


def figure_6(store: Store) -> list[str]:
    rows = []
    for key, result in store.every("noise-curve"):
        for kind, table in result.items():
            at = {level: position for position, level in enumerate(table["noise"])}
            cells = []
            for level in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9):
                t = at[level]
                k = {"value": table["k_mean"][t], "low": table["k_low"][t], "high": table["k_high"][t]}
                cells.append(f"{figure(k, 1)}, {number(table['accuracy'][t], 3)}")
            rows.append([key.set, penalty(store, key), kind, str(table["draws"]), *cells])
    return markdown(("set", "l2", "noise", "draws", *(f"{level:.0%}" for level in (0, 0.1, 0.3, 0.5, 0.7, 0.9))), rows)


def section_34(store: Store) -> list[str]:
    rows = []
    for key, result in store.every("tag"):
        cells = [figure(intervals.mean(result[tag]["share"], key.seed)) for tag in ("X", "Y")]
        pooled = " / ".join(number(result[tag].get("pooled")) for tag in ("X", "Y"))
        counts = " / ".join(str(len(result[tag]["share"])) for tag in ("X", "Y"))
        sizes = " / ".join(number(mean_of(result[tag]["k"]), 1) for tag in ("X", "Y"))
        paper = f"{stated.TAG[0]:.2f} / {stated.TAG[1]:.2f}" if key.set == "loan" else stated.NOT_STATED
        rows.append([key.set, str(key.seed), number(result["base_rate"]), *cells, pooled, counts, sizes, paper])
    head = ("set", "seed", "base rate", "tag X", "tag Y", "pooled X / Y", "predictions X / Y", "mean k X / Y", "paper")
    return markdown(head, rows)


def tables_4_7(store: Store) -> list[str]:
    rows = []
    for key, result in store.every("removal"):
        for labels in ("clean", "noisy"):
            relabelled = [one["k"] for one in result[labels]["relabel"]]
            for method, found in result[labels].items():
                k = [one["k"] for one in found]
                both = [(a, b) for a, b in zip(relabelled, k, strict=True) if a is not None and b is not None]
                shares = [one["planted"] / one["k"] for one in found if one["k"]]
                rows.append(
                    [
                        key.set,
                        {"clean": "as they are", "noisy": "30 % inverted"}[labels],
                        method,
                        figure(intervals.share([one is not None for one in k])),
                        figure(intervals.share([one["flipped"] is True for one in found])),
                        figure(intervals.median(k), 0),
                        number(float(np.median([b / a for a, b in both])) if both else None),
                        " + ".join(number(mean_of([one[part] for one in found if one["k"]]), 1) for part in KINDS),
                        figure(intervals.mean(shares)) if labels == "noisy" else "",
                    ]
                )
    head = (
        "set", "labels", "method", "found", "flipped on refit", "median k", "k over relabelling's, median",
        "mean planted + normal rows", "planted share of a set",
    )  # fmt: skip
    return markdown(head, rows)


KINDS = ("planted", "normal")


def tables_3_8(store: Store) -> list[str]:
    rows = []
    for key, result in store.every("cost"):
        if "skipped" in result:
            rows.append([key.set, result["skipped"], *[""] * 6])
            continue
        theirs, fast, sure = (result[name] for name in ("published_ms", "estimate_ms", "verified_ms"))
        rows.append(
            [
                key.set,
                f"{result['rows']:,} x {result['columns']:,}",
                str(result["predictions"]),
                number(theirs),
                number(fast, 3),
                number(sure),
                f"{theirs / fast:.1f}",
                f"{theirs / sure:.1f}",
            ]
        )
    head = (
        "set", "training rows x columns", "predictions", "published, ms", "estimate pass, ms", "verified search, ms",
        "published / estimate", "published / verified",
    )  # fmt: skip
    return markdown(head, rows)
