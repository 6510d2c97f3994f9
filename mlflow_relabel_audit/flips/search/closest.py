"""The smallest verified set that flips a prediction to any other class.

Of two classes there is one other, and one margin. Of K there are K - 1: the class whose estimate is smallest is
searched first, and another one only while its estimate stays below the k found, as a bound of the search. At k - 1 of
the set that wins, the class it flips to does not lead yet; that no third class does is proved here, by a refit. Which
class leads at k, a third one perhaps, is read off another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlflow_relabel_audit.flips.order.influence import EstimateBlock
from mlflow_relabel_audit.flips.refit.exact import converged
from mlflow_relabel_audit.flips.relabelling import Relabelling
from mlflow_relabel_audit.flips.search.adaptive import shrink
from mlflow_relabel_audit.flips.search.flip_set import UNVERIFIED, VERIFIED, FlipSet
from mlflow_relabel_audit.flips.search.prefix import VerifiedSearch
from mlflow_relabel_audit.likelihood import FloatArray, IntArray


def search_closest(
    searcher: VerifiedSearch, block: EstimateBlock, *, adaptive: bool, progress: Callable[[int], None] | None = None
) -> tuple[list[FlipSet], IntArray]:
    """Search the flip set of every evaluation row of a block.

    Parameters
    ----------
    searcher : VerifiedSearch
    block : EstimateBlock
        with the margins that are asked about, the evaluation row's next to one another.
    adaptive : bool
        try to shrink each set (`adaptive.shrink`).
    progress : callable, optional
        called with the number of evaluation rows finished since the last call.

    Returns
    -------
    list of FlipSet, one per evaluation row, and ndarray with the margin of the block that each is about
    """
    by_owner = _by_owner(block)
    if len(by_owner) == len(block.orders):
        found = searcher.run(block, keep_theta=adaptive, progress=progress)
        return (shrink(searcher, searcher.effect, block, found) if adaptive else found), np.arange(len(by_owner))
    queues = [_queue(block, part) for part in by_owner]
    chosen = np.array([queue.pop(0) for queue in queues])
    found = searcher.run(block.only(chosen), keep_theta=adaptive, progress=progress)
    while True:
        rivals = [_rival(block, found[row], queue) for row, queue in enumerate(queues)]
        rows = np.array([row for row, t in enumerate(rivals) if t is not None], dtype=np.intp)
        if not rows.size:
            break
        margins = np.array([rivals[row] for row in rows])
        for bounded in (True, False):
            some = np.array([(found[row].status == VERIFIED) is bounded for row in rows], dtype=bool)
            upper = [found[row].k for row in rows[some]] if bounded else None
            results = searcher.run(block.only(margins[some]), upper=upper, keep_theta=adaptive) if some.any() else []
            for row, t, result in zip(rows[some], margins[some], results, strict=True):
                if result.status == VERIFIED:
                    found[row], chosen[row] = result, t
    if adaptive:
        found = shrink(searcher, searcher.effect, block.only(chosen), found)
    found, chosen = _led_before(searcher, block, found, chosen)
    return found, _leading(searcher, block, found, chosen)


def estimated_closest(block: EstimateBlock) -> tuple[list[FlipSet], IntArray]:
    """The sets of the smallest estimates, none of them verified; see `search_closest`."""
    sizes = np.array([order.k_estimate or np.inf for order in block.orders])
    chosen = np.array([part[np.argmin(sizes[part])] for part in _by_owner(block)], dtype=np.intp)
    orders = [block.orders[t] for t in chosen]
    sets = [
        FlipSet(order.change.first(order.k_estimate), order.influence[: order.k_estimate], UNVERIFIED, np.nan)
        for order in orders
    ]
    return sets, chosen


def least_by_owner(block: EstimateBlock, lower: IntArray) -> IntArray:
    """The least of a block's bounds, one per margin, for every evaluation row."""
    return np.array([lower[part].min() for part in _by_owner(block)], dtype=np.int64)


def _by_owner(block: EstimateBlock) -> list[IntArray]:
    """The margins of each evaluation row."""
    owner = block.asked.owner
    return np.split(np.arange(len(owner)), np.flatnonzero(np.diff(owner)) + 1) if len(owner) else []


def _queue(block: EstimateBlock, margins: IntArray) -> list[int]:
    """An evaluation row's margins, the smallest estimate first; those that no estimate reaches last."""
    sizes = np.array([block.orders[t].k_estimate or np.inf for t in margins])
    return [int(t) for t in margins[np.argsort(sizes, kind="stable")]]


def _rival(block: EstimateBlock, found: FlipSet, queue: list[int]) -> int | None:
    """The next margin that could flip with fewer labels than found."""
    if not queue:
        return None
    estimate = block.orders[queue[0]].k_estimate
    if found.status == VERIFIED and not 0 < estimate < found.k:
        queue.clear()
        return None
    return queue.pop(0)


def _led_before(
    searcher: VerifiedSearch, block: EstimateBlock, found: list[FlipSet], chosen: IntArray
) -> tuple[list[FlipSet], IntArray]:
    """Prove that with one label less the predicted class led all others; where one led it, the set shrinks to there."""
    found, chosen = list(found), chosen.copy()
    waiting = [row for row, item in enumerate(found) if item.status == VERIFIED]
    while waiting:
        sets = [found[row].change.first(found[row].k - 1) for row in waiting]
        owners = block.asked.owner[chosen[waiting]]
        others = [np.flatnonzero(block.asked.owner == owner) for owner in owners]
        again = []
        for row, rivals, (margins, errors) in zip(
            waiting, others, _margins(searcher, block, others, sets, _signs_told), strict=True
        ):
            ahead = np.flatnonzero(margins + errors < 0)
            if ahead.size:
                worst = int(ahead[np.argmin(margins[ahead])])
                shorter, k = found[row], found[row].k - 1
                found[row] = dataclasses.replace(
                    shorter,
                    change=shorter.change.first(k),
                    influence=shorter.influence[:k],
                    margin_after=float(margins[worst]),
                )
                chosen[row] = rivals[worst]
                again.append(row)
            elif np.any(margins - errors <= 0):
                found[row] = FlipSet.empty(UNVERIFIED)
        waiting = again
    return found, chosen


def _leading(searcher: VerifiedSearch, block: EstimateBlock, found: list[FlipSet], chosen: IntArray) -> IntArray:
    """The margin over the class that leads after each refit: a third one may be ahead of the one that overtook."""
    chosen = chosen.copy()
    verified = [row for row, item in enumerate(found) if item.status == VERIFIED]
    others = [np.flatnonzero(block.asked.owner == block.asked.owner[chosen[row]]) for row in verified]
    after = _margins(searcher, block, others, [found[row].change for row in verified], _leader_told)
    for row, rivals, (margins, _) in zip(verified, others, after, strict=True):
        chosen[row] = rivals[np.argmin(margins)]
    return chosen


def _margins(
    searcher: VerifiedSearch,
    block: EstimateBlock,
    asked: Sequence[IntArray],
    sets: list[Relabelling],
    enough: Callable[[FloatArray, FloatArray], bool],
) -> list[tuple[FloatArray, FloatArray]]:
    """Margins of evaluation rows after their refits, each row's own, and bounds of their errors, once ``enough``."""
    out: list[tuple[FloatArray, FloatArray]] = []
    for start in range(0, len(sets), searcher.width):
        some = slice(start, start + searcher.width)
        groups = [block.targets[:, margins] for margins in asked[some]]
        norms = [
            _norms(targets, block.direction[:, margins]) for targets, margins in zip(groups, asked[some], strict=True)
        ]

        def done(column: int, theta: FloatArray, radius: float, groups: Any = groups, norms: Any = norms) -> bool:
            return enough(theta @ groups[column], norms[column] * radius)

        firsts = np.array([margins[0] for margins in asked[some]])
        columns = searcher.refits(len(firsts))
        refits = converged(columns, block.targets[:, firsts], block.direction[:, firsts], sets[some], done)
        out += [
            (theta @ targets, _norms(targets, solve(targets)) * radius)
            for targets, (theta, radius, solve) in zip(groups, refits, strict=True)
        ]
    return out


def _norms(targets: FloatArray, solved: FloatArray) -> FloatArray:
    return np.sqrt(np.maximum(np.einsum("ij,ij->j", targets, solved), 0.0))


def _signs_told(margins: FloatArray, errors: FloatArray) -> bool:
    """Whether it is proved of every class on which side it is."""
    return bool(np.all(np.abs(margins) > errors))


def _leader_told(margins: FloatArray, errors: FloatArray) -> bool:
    """Whether it is proved which class is furthest ahead."""
    best = int(np.argmin(margins))
    clear = margins - margins[best] > errors + errors[best]
    return bool(np.all(np.delete(clear, best)) and np.isfinite(errors[best]))
