"""What the paper states, what was measured, and whether the two agree."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.paper import intervals, stated
from benchmarks.paper.store import Key, Store
from benchmarks.paper.tables import markdown, mean_of

AGREES, DIFFERS, AHEAD = "agrees", "**differs**", "ahead"
LEAK = "labels that one test point changes stay changed for the next, and the intercept is penalised"


def verdicts(store: Store) -> list[str]:
    """One line for each statement of the paper on which there are results."""
    rows: list[tuple[str, str, str, str]] = []
    for judge in (found, flipped, verified, smaller, fragile, complementary, noise, removal, tag, cost):
        rows += judge(store)
    return markdown(("the paper", "measured", "", "why"), rows)


def of_paper(store: Store, experiment: str) -> list[tuple[Key, dict[str, Any]]]:
    """Return results at the paper's penalty, first seed."""
    return [(key, result) for key, result in store.every(experiment) if key.penalty == "paper" and key.seed == 0]


def span(values: list[float], digits: int = 2) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def found(store: Store) -> list[tuple[str, str, str, str]]:
    shares = [float(np.mean([k is not None for k in result["k"]])) for _, result in of_paper(store, "published")]
    if not shares:
        return []
    low, high = stated.FOUND
    inside = min(shares) >= low - 0.05 and max(shares) <= high
    why = "" if inside else "the features are not the paper's own, and they decide how confident predictions are"
    return [
        (
            f"Algorithm 1 finds a set for {low:.2f} to {high:.2f} of the test points (Table 2)",
            f"{span(shares)} over {len(shares)} sets",
            AGREES if inside else DIFFERS,
            why,
        )
    ]


def flipped(store: Store) -> list[tuple[str, str, str, str]]:
    results = of_paper(store, "published")
    if not results:
        return []
    leak, clean = (
        [float(np.mean([flip == 1.0 for flip in result[name]])) for _, result in results]
        for name in ("flipped_leak", "flipped_clean")
    )
    low, high = stated.FLIPPED
    inside = min(leak) >= low - 0.05 and max(leak) <= high + 0.05
    return [
        (
            f"the refit flips {low:.2f} to {high:.2f} (Table 2)",
            f"as published {span(leak)}; with clean refits {span(clean)}",
            AGREES if inside else DIFFERS,
            f"as published, {LEAK}; the order of the test points then decides what flips",
        )
    ]


def verified(store: Store) -> list[tuple[str, str, str, str]]:
    results = store.every("k")
    if not results:
        return []
    proved = [float(np.mean([one == "verified" for one in result["status"]])) for _, result in results]
    sure = [one for _, result in results for one in result["confirmed"] if not one["doubtful"]]
    good = sum(one["flips"] and not one["one_less_flips"] for one in sure)
    return [
        (
            "(nothing of the kind)",
            f"found and proved to flip: {span(proved)}; scikit-learn agrees at k and at k - 1 in {good} of {len(sure)}",
            AHEAD if min(proved) == 1.0 and good == len(sure) else "short of 1",
            "refits instead of sums",
        )
    ]


def smaller(store: Store) -> list[tuple[str, str, str, str]]:
    less, total = 0, 0
    beaten: list[dict[str, Any]] = []
    for key, result in store.every("published"):
        ours = store.read(Key(key.set, "k", key.penalty, key.seed))
        mine = dict(zip(ours["row_id"], ours["k"], strict=True)) if ours else {}
        pairs = [(mine.get(row), k) for row, k in zip(result["row_id"], result["k"], strict=True)]
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        beaten += result["smaller"]
        if both:
            total += 1
            less += np.mean([a for a, _ in both]) <= np.mean([b for _, b in both])
    if not total:
        return []
    flips = sum(one["flips"] for one in beaten)
    return [
        (
            "its sets are the smallest it finds",
            f"verified k is smaller on average in {less} of {total} set-and-penalty pairs; {len(beaten)} published "
            f"sets are smaller than ours, and {flips} of them flip a refit run to the end",
            AHEAD if less == total else DIFFERS,
            "the published sum is taken in probability, where the sigmoid saturates; near the threshold it stops short",
        )
    ]


def fragile(store: Store) -> list[tuple[str, str, str, str]]:
    shares, where_found = {}, []
    for key, result in of_paper(store, "k"):
        below = np.array([one is not None and one < stated.FRAGILE * result["rows"] for one in result["k"]])
        known = np.array([one is not None for one in result["k_paper"]])
        shares[key.set] = float(below.mean())
        where_found += [float(below[known].mean())] if known.any() else []
    if not shares:
        return []
    worst = min(shares, key=lambda name: shares[name])
    return [
        (
            "fewer than 2 % of the labels can always flip a prediction (abstract)",
            f"for {span(list(shares.values()))} of the predictions of a set; of those Algorithm 1 finds a set for, "
            f"{span(where_found)}",
            AGREES if min(shares.values()) == 1.0 else DIFFERS,
            "" if shares[worst] == 1.0 else f"confident predictions need more, most often on {worst}",
        )
    ]


def complementary(store: Store) -> list[tuple[str, str, str, str]]:
    values = []
    for key, result in of_paper(store, "k"):
        threshold = store.settings(key)["threshold"]
        distance = [abs(p - threshold) for p in result["probability"]]
        value = intervals.rank_correlation(result["k"], distance)["value"]
        values += [] if value is None else [value]
    if not values:
        return []
    return [
        (
            "k is correlated with predicted probability, but complementary to it (abstract)",
            f"rank correlation with the distance from the threshold {span(values)}",
            AGREES if min(values) > 0.3 else DIFFERS,
            "above 0.95 it adds little: where curvature and leverage hardly vary among test points"
            if max(values) > 0.95
            else "",
        )
    ]


def noise(store: Store) -> list[tuple[str, str, str, str]]:
    left, lost, names = [], [], []
    for key, result in of_paper(store, "noise-curve"):
        table = result["coin"]
        at = table["noise"].index(0.3)
        if table["k_mean"][0] and table["k_mean"][at] is not None:
            left.append(table["k_mean"][at] / table["k_mean"][0])
            lost.append(1.0 - table["accuracy"][at] / table["accuracy"][0])
            names.append(key.set)
    if not left:
        return []
    faster = [name for name, a, b in zip(names, left, lost, strict=True) if 1.0 - a > 2.0 * max(b, 0.0)]
    other = [name for name in names if name not in faster]
    return [
        (
            "k falls with the noise ratio long before accuracy does (Figure 6)",
            f"30 % of the labels tossed: k is {span(left)} of what it was, "
            f"accuracy {span([1.0 - part for part in lost])}",
            AGREES if len(faster) == len(left) else f"{AGREES} on {len(faster)} of {len(left)} sets",
            "" if len(faster) == len(left) else f"not on {', '.join(other)}",
        )
    ]


def removal(store: Store) -> list[tuple[str, str, str, str]]:
    less = total = 0
    for _, result in of_paper(store, "removal"):
        for labels in ("clean", "noisy"):
            mine = [one["k"] for one in result[labels]["relabel"]]
            for name in ("removal 1", "removal 2", "removal, searched"):
                other = [one["k"] for one in result[labels][name]]
                both = [(a, b) for a, b in zip(mine, other, strict=True) if a is not None and b is not None]
                if both:
                    total += 1
                    less += np.median([b / a for a, b in both]) >= 1.0
    if not total:
        return []
    return [
        (
            f"relabelling beside removal (Tables 4, 7): {stated.NOT_STATED}",
            f"relabelling needs no more rows, in the median, in {less} of {total} comparisons",
            "",
            "" if less == total else "removal's published sets are counted where they were found, flipping or not",
        )
    ]


def tag(store: Store) -> list[tuple[str, str, str, str]]:
    results = [result for key, result in store.every("tag") if key.set == "loan"]
    if not results:
        return []
    x, y = (float(np.mean([mean_of(result[name]["share"]) or 0.0 for result in results])) for name in ("X", "Y"))
    return [
        (
            f"loan: the biased rows make up {stated.TAG[0]:.0%} of the sets of misclassified tag X, "
            f"{stated.TAG[1]:.0%} of tag Y's (Section 3.4)",
            f"{x:.0%} and {y:.0%}, mean of {len(results)} seeds",
            AGREES if x > 0.5 else f"same direction, {DIFFERS}",
            "the paper's loan model has an accuracy of .79, which no honest model of these data comes near (.57)",
        )
    ]


def cost(store: Store) -> list[tuple[str, str, str, str]]:
    results = [result for _, result in of_paper(store, "cost") if "skipped" not in result]
    if not results:
        return []
    fast, sure = ([result["published_ms"] / result[name] for result in results] for name in COLUMNS)
    return [
        (
            f"milliseconds a prediction (Tables 3, 8): {stated.NOT_STATED}",
            f"transcription over estimate pass {span(fast, 1)}, over verified search {span(sure, 1)} times",
            AHEAD if min(sure) > 1 else f"estimate {AHEAD}, the verified search not everywhere",
            "the published algorithm does not refit; the verified search proves every k by refits",
        )
    ]


COLUMNS = ("estimate_ms", "verified_ms")
