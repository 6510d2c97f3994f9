"""Predictions against the bounds of a level (section 5 of `flips.certificate.bound`), summed where the rows are.

No response leaves its block. Blocks are asked three things: their rows with the largest g_i (`Prospects`); at a level
the sums of psi_j and of w_j psi_j over ranges of w_j, from which (3) is known for every tau that is an edge of a range
(`survey`); and, for a tau, their k largest ``g_i + tau B_i`` (`moves`). A range is one value of a float64's leading
bits, so edges are exact, and ranges as narrow as 1/32 of w_j itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mlflow_relabel_audit.flips.certificate.localisation import ROUNDING, LevelBound, RowState
from mlflow_relabel_audit.likelihood import FloatArray, IntArray
from mlflow_relabel_audit.rows import Kept, RowBlock, Rows
from mlflow_relabel_audit.rows.steps import picks_rows

FINE = 5
"""Bits of a float64's fraction that tell ranges of w_j apart."""
RANGES = 12 << FINE
"""Ranges below the largest w_j: twelve halvings; what is smaller shares the last one."""
SHIFT = 52 - FINE
LEAST_WORTH = 1e-280
TRIES = 2
"""Choices of tau at a level, each from the rows that the one before ranked first."""


class RowTerms(NamedTuple):
    """What is asked of the training rows at every level; every array has shape (rows,).

    Attributes
    ----------
    sign : ndarray
        ``2 y_i - 1``.
    extreme : ndarray
        ``max(p_i, 1 - p_i)``.
    norm : ndarray
        ``||x_i||_{H^-1}``, or an upper bound.
    length : ndarray
        ``||x_i||``.
    """

    sign: FloatArray
    extreme: FloatArray
    norm: FloatArray
    length: FloatArray

    @classmethod
    def keep(cls, rows: Rows, state: RowState, lengths: FloatArray) -> Kept:
        """Those of all rows, where the rows are."""
        return rows.keep(_terms, along=(2.0 * rows.y - 1.0, state.extreme, state.norm, lengths))


class LevelRows(NamedTuple):
    """The rows of a `LevelBound`; every array has shape (rows,).

    Attributes
    ----------
    low, high : ndarray
        range of kappa_i.
    change : ndarray
        largest e_i.
    charge : ndarray
        B_i, of the energy.
    load : tuple of ndarrays
        the ends of the range of the relabelling coefficient's size, the least first; one where it is a point.
    """

    low: FloatArray
    high: FloatArray
    change: FloatArray
    charge: FloatArray
    load: tuple[FloatArray, ...]


@dataclass(frozen=True)
class Level:
    """What holds for every set of at most k rows, where the rows are.

    Attributes
    ----------
    k : int
    offset : float
        of the energy.
    rows : Kept
        `LevelRows` of each block.
    """

    k: int
    offset: float
    rows: Kept

    @classmethod
    def keep(cls, rows: Rows, bound: LevelBound) -> Level:
        """Leave a bound's rows where the rows are."""
        load = (bound.load_low, bound.load_high) if bound.load_low is not bound.load_high else (bound.load_high,)
        along = (bound.low, bound.high, bound.change, bound.energy.charge, *load)
        return cls(bound.k, bound.energy.offset, rows.keep(_level, along=along))


class Asked(NamedTuple):
    """What the blocks need of B predictions.

    Attributes
    ----------
    scale : ndarray of shape (B,)
        the response of row i errs by at most this times ``||x_i||``
    form : ndarray of shape (B,)
        and by this times ``||x_i||_{H^-1}``.
    """

    scale: FloatArray
    form: FloatArray

    def only(self, some: IntArray) -> Asked:
        """Of some of them."""
        return Asked(self.scale[some], self.form[some])


@dataclass(frozen=True)
class Survey:
    """What is known of (3) for A predictions at a level each.

    Attributes
    ----------
    who, level : ndarray of shape (A,)
        which predictions, and the places of their levels.
    tau, rest : ndarray of shape (A, RANGES)
        edges of w_j, rising, and upper bounds of ``sum_j (w_j - tau)_+ psi_j``.
    gain, charge : ndarray of shape (A, k)
        g_i and B_i of the lead.
    """

    who: IntArray
    level: IntArray
    tau: FloatArray
    rest: FloatArray
    gain: FloatArray
    charge: FloatArray


class Prospects:
    """Predictions against the bounds of rising levels.

    Parameters
    ----------
    rows : Rows
    terms : Kept
        `RowTerms` of each block.
    levels : sequence of Level
        one at least.
    response : Kept, or ndarray of shape (n, B)
        ``x_i . H^-1 x_t`` turned toward the flip; each block's has shape (rows, B).
    asked : Asked
    """

    def __init__(self, rows: Rows, terms: Kept, levels: Sequence[Level], response: Any, asked: Asked) -> None:
        self._rows, self._terms, self._levels = rows, terms, levels
        self._response, self._asked = response, asked
        self._size = np.array([level.k for level in levels])
        self._offset = np.array([level.offset for level in levels])
        most = int(self._size[-1])
        lead, ceiling = self._reduce(_lead, levels[:1], asked, most, join=("larger", "max"))
        self.gain, self._index = lead[:, 0], lead[:, 1].astype(np.int64)
        top = np.maximum(ceiling, LEAST_WORTH).view(np.int64) >> SHIFT
        self._first = top - (RANGES - 1)

    def _reduce(self, step: Any, levels: Sequence[Level], *arguments: Any, join: tuple[str, ...]) -> Any:
        along = (self._terms, self._response, *(level.rows for level in levels))
        return self._rows.reduce(step, *arguments, join=join, along=along, each=lambda start, _: (start, len(levels)))

    def _of_each(self, step: Any, who: IntArray, level: IntArray, *arguments: Any, join: tuple[str, ...]) -> Any:
        """Ask all blocks about some predictions, each at the level of that place."""
        used, which = np.unique(level, return_inverse=True)
        levels = [self._levels[place] for place in used]
        return self._reduce(step, levels, self._asked.only(who), who, which, *arguments, join=join)

    def certified(self, goal: FloatArray) -> IntArray:
        """Largest k proved not to move each margin by ``goal``, 0 where none is; shape (B,)."""
        reach = (np.cumsum(np.maximum(self.gain, 0.0), axis=1) < goal[:, None]).sum(axis=1)
        low, best = np.zeros(len(goal), dtype=np.int64), np.zeros(len(goal), dtype=np.int64)
        # a level above what the largest g_i allow is only of use as the first one
        high = np.searchsorted(self._size[:-1], reach, side="right")
        while (open_ := np.flatnonzero(low <= high)).size:
            middle = (low[open_] + high[open_]) // 2
            survey = self.survey(open_, middle)
            size = self._size[middle]
            spent = np.where(np.arange(self.gain.shape[1]) < size[:, None], survey.charge, 0.0).sum(axis=1)
            safe, tau = np.zeros(len(open_), dtype=np.int64), np.full(len(open_), np.nan)
            left = np.arange(len(open_))
            for _ in range(TRIES):
                place = self.price(survey, left, spent[left])
                new = survey.tau[left, place] != tau[left]
                left, place = left[new], place[new]
                if not left.size:
                    break
                tau[left] = survey.tau[left, place]
                sums, charge = self.moves(survey, left, place)
                k = ((sums < goal[open_[left], None]) & (np.arange(sums.shape[1]) < size[left, None])).sum(axis=1)
                safe[left] = np.maximum(safe[left], k)
                spent[left] = np.where(np.arange(sums.shape[1]) <= k[:, None], charge, 0.0).sum(axis=1)
                left = left[k < size[left]]
            best[open_] = np.maximum(best[open_], safe)
            whole = safe >= size
            low[open_[whole]], high[open_[~whole]] = middle[whole] + 1, middle[~whole] - 1
        return best

    def survey(self, who: IntArray, level: IntArray) -> Survey:
        """Sum over ranges of w_j, and look the lead up."""
        sums, lead = self._of_each(_survey, who, level, self._first[who], self._index[who], join=("sum", "sum"))
        sums = np.cumsum(sums[..., ::-1], axis=2)[..., ::-1]
        tau = ((self._first[who, None] + np.arange(RANGES)) << SHIFT).view(np.float64)
        width, value = sums[:, 0], sums[:, 1]
        rest = np.maximum(value - tau * width, 0.0) + ROUNDING * value
        rest[:, 0] = np.inf  # the last range holds what is smaller as well
        return Survey(who, level, tau, rest, lead[:, 0], lead[:, 1])

    def price(self, survey: Survey, some: IntArray, spent: FloatArray) -> IntArray:
        """Place of the tau that serves best if the maximising set is charged ``spent``; any guess gives a bound."""
        budget = self._offset[survey.level[some]] + spent
        return np.argmin(survey.rest[some] + survey.tau[some] * budget[:, None], axis=1)

    def moves(self, survey: Survey, some: IntArray, place: IntArray) -> tuple[FloatArray, FloatArray]:
        """Right side of (3) at a tau, for 1, 2 ... labels, and the charges of the rows that make it; shape (A, k).

        Without residual and rounding of the margin. Of a level's own k and no more.
        """
        who, level = survey.who[some], survey.level[some]
        tau = survey.tau[some, place]
        gains = survey.gain[some] + tau[:, None] * survey.charge[some]
        inside = np.arange(gains.shape[1]) < self._size[level][:, None]
        # the k-th largest is at least the least of any k
        floor = np.where(inside, gains, np.inf).min(axis=1)
        floor -= 1e-9 * np.abs(floor)
        (found,) = self._of_each(_moves, who, level, tau, floor, gains.shape[1], join=("larger",))
        sums = np.cumsum(np.maximum(found[:, 0], 0.0), axis=1)
        sums += (survey.rest[some, place] + tau * self._offset[level])[:, None]
        return sums * (1.0 + 10.0 * ROUNDING), found[:, 1]


# what is asked of a block


@picks_rows
def _terms(_: RowBlock, *values: FloatArray) -> RowTerms:
    return RowTerms(*values)


@picks_rows
def _level(
    _: RowBlock, low: FloatArray, high: FloatArray, change: FloatArray, charge: FloatArray, *load: FloatArray
) -> LevelRows:
    return LevelRows(low, high, change, charge, load)


def _gain(terms: RowTerms, load: tuple[FloatArray, ...], response: FloatArray, error: FloatArray) -> FloatArray:
    """Upper ends of ``g_i = -dir a_i P_i``, shape (rows,)."""
    *least, most = load
    toward = terms.sign * response
    np.negative(toward, out=toward)
    gains = toward * most
    for end in least:
        np.maximum(gains, toward * end, out=gains)
    gains += most * error
    return np.asarray(gains)


def _error(terms: RowTerms, asked: Asked, t: int) -> FloatArray:
    error = asked.scale[t] * terms.length
    error += asked.form[t] * terms.norm
    return error


def _largest(values: FloatArray, k: int, floor: float = -np.inf) -> IntArray:
    """Positions of the k largest values, the largest first, of those that reach the floor."""
    inside = np.arange(len(values)) if floor == -np.inf else np.flatnonzero(values >= floor)
    if len(inside) > max(4 * k, 256):
        narrow = values[inside].astype(np.float32)
        # float32 keeps the order of values that it tells apart, so nothing above its k-th largest is lost
        inside = inside[narrow >= np.partition(narrow, len(narrow) - k)[len(narrow) - k]]
    return inside[np.argsort(-values[inside], kind="stable")[:k]]


@picks_rows
def _lead(
    _: RowBlock, start: int, count: int, terms: RowTerms, response: FloatArray, level: LevelRows, asked: Asked, k: int
) -> tuple[FloatArray, FloatArray]:
    """The k largest g_i of each prediction with their rows, shape (B, 2, k), and a bound of every w_j."""
    extreme = terms.extreme
    found, ceiling = np.full((len(asked.scale), 2, k), -np.inf), np.zeros(len(asked.scale))
    found[:, 1] = -1.0
    for t, narrow in enumerate(response.T):
        wide, error = narrow.astype(np.float64), _error(terms, asked, t)
        gains = _gain(terms, level.load, wide, error)
        index = _largest(gains, k)
        found[t, 0, : len(index)], found[t, 1, : len(index)] = gains[index], start + index
        np.abs(wide, out=wide)
        wide *= extreme
        error *= extreme
        wide += error
        ceiling[t] = wide.max(initial=0.0)
    return found, ceiling


@picks_rows
def _survey(
    _: RowBlock, start: int, count: int, terms: RowTerms, response: FloatArray, *given: Any
) -> tuple[FloatArray, FloatArray]:
    """Sums of psi_j and w_j psi_j over ranges of w_j, (A, 2, RANGES); g_i and B_i of the lead, (A, 2, k)."""
    levels, (asked, who, which, first, lead) = given[:count], given[count:]
    extreme = terms.extreme
    sums, found = np.zeros((len(who), 2, RANGES)), np.zeros((len(who), 2, lead.shape[1]))
    for a, t in enumerate(who):
        level = levels[which[a]]
        wide, error = response.T[t].astype(np.float64), _error(terms, asked, a)
        here = np.flatnonzero((lead[a] >= start) & (lead[a] < start + len(wide)))
        index = lead[a, here] - start
        few, load = RowTerms(*(part[index] for part in terms)), tuple(part[index] for part in level.load)
        found[a, 0, here] = _gain(few, load, wide[index], error[index])
        found[a, 1, here] = level.charge[index]
        worth = level.low * wide
        np.negative(worth, out=worth)
        wide *= level.high
        np.maximum(worth, np.negative(wide, out=wide), out=worth)
        error *= extreme
        worth += error
        place = worth.view(np.int64) >> SHIFT
        place -= first[a]
        np.maximum(place, 0, out=place)
        sums[a, 0] = np.bincount(place, level.change, RANGES)
        worth *= level.change
        sums[a, 1] = np.bincount(place, worth, RANGES)
    return sums, found


@picks_rows
def _moves(
    _: RowBlock, start: int, count: int, terms: RowTerms, response: FloatArray, *given: Any
) -> tuple[FloatArray]:
    """The k largest ``g_i + tau B_i`` of each prediction that reach its floor, with B_i, shape (A, 2, k)."""
    levels, (asked, who, which, tau, floor, k) = given[:count], given[count:]
    found = np.zeros((len(who), 2, k))
    found[:, 0] = -np.inf
    for a, t in enumerate(who):
        level = levels[which[a]]
        gains = _gain(terms, level.load, response.T[t].astype(np.float64), _error(terms, asked, a))
        gains += tau[a] * level.charge
        index = _largest(gains, k, floor[a])
        found[a, 0, : len(index)], found[a, 1, : len(index)] = gains[index], level.charge[index]
    return (found,)
