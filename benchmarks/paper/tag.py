"""Section 3.4: labels of one group changed, and how much of the flip sets of its errors they make up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.paper.bench import Bench

SHARE_X = 0.4
SHARE_RELABELLED = 0.9


def tagged(features: Any, is_x: np.ndarray) -> Any:
    """The features, one-hot columns of the tag beside them."""
    columns = np.stack([is_x, ~is_x], axis=1).astype(np.float64)
    return sp.hstack([features, sp.csr_array(columns)], format="csr") if sp.issparse(features) else np.hstack(
        [features, columns]
    )  # fmt: skip


def tag(bench: Bench) -> dict[str, Any]:
    """A random tag X (40 %) or Y; 90 % of the rows of tag X and class 0 are relabelled 1.

    The share of the relabelled rows in the flip sets of misclassified predictions, for each tag, with the tag
    among the features.
    """
    data = bench.data
    rng = np.random.default_rng(bench.seed)
    train_x, test_x = (rng.random(len(y)) < SHARE_X for y in (data.y, data.y_test))
    pool = np.flatnonzero(train_x & (data.y == 0))
    planted = rng.permutation(pool)[: round(SHARE_RELABELLED * len(pool))]
    here = replace(bench, data=replace(data, X=tagged(data.X, train_x), X_test=tagged(data.X_test, test_x)))
    here = here.relabelled(planted)
    marked = np.zeros(len(data.y), dtype=bool)
    marked[planted] = True
    wrong = ~here.correct()
    out: dict[str, Any] = {"base_rate": float(marked.mean()), "planted": len(planted)}
    for at, (name, group) in enumerate({"X": test_x, "Y": ~test_x}.items()):
        index = np.flatnonzero(wrong & group)
        taken = np.sort(rng.permutation(index)[: bench.sizes.errors])
        rows: dict[str, Any] = {"misclassified": len(index), "group": int(group.sum()), "share": [], "k": []}
        if len(taken):
            found = here.auditor.robustness(here.data.X_test[taken], certify=False)
            for _, ids in found.flip_sets.groupby("row_id")["train_id"]:
                rows["share"].append(float(marked[ids.to_numpy()].mean()))
                rows["k"].append(len(ids))
            rows["pooled"] = float(marked[found.flip_sets["train_id"].to_numpy()].mean()) if rows["k"] else None
        out[name] = rows
        bench.progress(at + 1, 2)
    return out
