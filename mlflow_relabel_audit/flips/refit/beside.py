"""The passes of the refits, begun from what the process that holds a block has kept of the pass before.

Where the rows are in other processes, each lays `Kept` of its blocks on its shelf, and a pass takes two products of
the rows instead of five. A ticket says which columns a pass is about and how often they have been moved; whatever is
not on the shelf, or is of another moment, is worked out from the columns' coefficients. So a worker that is lost, or a
pass that is run twice, changes nothing but time.
"""

from __future__ import annotations

import dataclasses
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_relabel_audit.flips.refit import passes
from mlflow_relabel_audit.flips.refit.rows import Kept, RefitRows, Ticket
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import RowBlock
from mlflow_relabel_audit.rows.shelf import SHELF

UNKNOWN = -1


class Moment:
    """Where the refits of some columns are, for the tickets of their passes.

    Attributes
    ----------
    moves : int
        how often all columns have been moved.
    live : bool
        whether tickets are given at all.
    """

    def __init__(self, width: int, *, live: bool) -> None:
        self.moves, self.live = 0, live
        self._search = uuid.uuid4().hex
        self._marks: IntArray = np.arange(width)
        self._next = width

    def change(self, slots: IntArray) -> None:
        """What was kept of these columns is of no use any more."""
        self._marks = self._marks.copy()
        self._marks[slots] = self._next + np.arange(len(slots))
        self._next += len(slots)

    def keep(self, slots: IntArray) -> None:
        """Only these columns go on."""
        self._marks = self._marks[slots]

    def ticket(self, start: int) -> Ticket | None:
        """For the block that begins with this row."""
        return None if not self.live else Ticket(self._search, start, self._marks, self.moves)


@dataclass(frozen=True)
class _Laid:
    """What is kept of a block, and of which moment.

    Attributes
    ----------
    kept : Kept
    placed : ndarray of shape (B,)
        marks of the columns whose margins are right.
    known : ndarray of shape (B,)
        the same where the response is right too, else `UNKNOWN`.
    moves : int
        how often the margins have been moved.
    imaged : int
        ``moves`` when the image was taken, `UNKNOWN` where it was not.
    """

    kept: Kept
    placed: IntArray
    known: IntArray
    moves: int
    imaged: int

    def arranged(self, marks: IntArray) -> _Laid:
        """The same for the columns with these marks; those that are not there are `UNKNOWN`."""
        where = {int(mark): place for place, mark in enumerate(self.placed)}
        place = np.array([where.get(int(mark), UNKNOWN) for mark in marks])
        here = place != UNKNOWN
        placed = np.where(here, marks, UNKNOWN)
        known = np.where(here, self.known[place], UNKNOWN)
        if len(marks) == len(self.placed) and np.array_equal(place[here], np.flatnonzero(here)):
            return dataclasses.replace(self, placed=placed, known=known)
        return dataclasses.replace(self, kept=self.kept.columns(np.where(here, place, 0)), placed=placed, known=known)


def _taken(block: RowBlock, ticket: Ticket, outputs: int) -> _Laid:
    """What is on the shelf for a ticket, in the order of its columns; nothing known where there is none."""
    laid = SHELF.take((ticket.search, ticket.start))
    width = len(ticket.marks)
    if laid is not None:
        found: _Laid = laid.arranged(ticket.marks)
        return found
    kept = Kept.empty(block.rows * outputs, width, np.float64 if outputs > 1 else np.float32)
    return _Laid(kept, np.full(width, UNKNOWN), np.full(width, UNKNOWN), UNKNOWN, UNKNOWN)


def _laid(ticket: Ticket, laid: _Laid) -> None:
    SHELF.put((ticket.search, ticket.start), laid, laid.kept.nbytes)


def evaluate(
    block: RowBlock, rows: RefitRows, theta: FloatArray, step: FloatArray | None, u: FloatArray
) -> tuple[FloatArray, ...]:
    """See `passes.evaluate`."""
    ticket = rows.ticket
    assert ticket is not None
    laid = _taken(block, ticket, rows.outputs)
    before = ticket.moves if step is None else ticket.moves - 1
    if laid.moves == ticket.moves:
        step = None  # moved already, by a run of this very pass
    elif laid.moves != before or laid.imaged != before:
        laid = dataclasses.replace(laid, known=np.full(len(ticket.marks), UNKNOWN))
    missing = np.flatnonzero(laid.known == UNKNOWN)
    if missing.size:
        _work_out(block, rows, laid.kept, missing, theta, u)
    found = passes.evaluate(block, rows.with_kept(laid.kept), theta, step, u)
    _laid(ticket, _Laid(laid.kept, ticket.marks, ticket.marks, ticket.moves, UNKNOWN))
    return found


def _work_out(block: RowBlock, rows: RefitRows, kept: Kept, slots: IntArray, theta: FloatArray, u: FloatArray) -> None:
    """Margins at ``theta`` and response of some columns, their image zero: there is nothing to move."""
    columns, few = rows.weighing.columns(slots, theta.shape[1] // rows.outputs), len(slots)
    both = np.concatenate([theta[:, columns], u[:, columns]], axis=1)
    for lines, piece, _ in rows.pieces(block, both.shape[1]):
        product = piece.margins(both)
        kept.z[lines, slots] = product[:, : len(columns)].reshape(-1, few)
        response = product[:, len(columns) :].reshape(-1, few)
        # an upper bound where it is kept in float32, which may round down
        kept.response[lines, slots] = response if rows.outputs > 1 else np.abs(response) * (1.0 + 2.0**-22)
    kept.image[:, slots] = 0.0


def bend(block: RowBlock, rows: RefitRows, theta: FloatArray, direction: FloatArray) -> tuple[FloatArray, FloatArray]:
    """See `passes.bend`."""
    ticket = rows.ticket
    assert ticket is not None
    laid = _taken(block, ticket, rows.outputs)
    width = len(ticket.marks)
    placed = laid.placed if laid.moves == ticket.moves else np.full(width, UNKNOWN)
    missing = np.flatnonzero(placed == UNKNOWN)
    if missing.size:
        columns = rows.weighing.columns(missing, width)
        for lines, piece, _ in rows.pieces(block, 3 * len(columns)):
            laid.kept.z[lines, missing] = piece.margins(theta[:, columns]).reshape(-1, len(missing))
    found = passes.bend(block, rows.with_kept(laid.kept), theta, direction)
    known = np.where(placed == UNKNOWN, UNKNOWN, laid.known)
    _laid(ticket, _Laid(laid.kept, ticket.marks, known, ticket.moves, ticket.moves))
    return found


def slope(block: RowBlock, rows: RefitRows, *given: Any) -> tuple[FloatArray, FloatArray]:
    """See `passes.slope`."""
    ticket = rows.ticket
    assert ticket is not None
    laid = SHELF.take((ticket.search, ticket.start))
    if laid is None:
        return passes.slope(block, rows, *given)
    now = laid.moves == laid.imaged == ticket.moves and np.array_equal(laid.placed, ticket.marks)
    found = passes.slope(block, rows.with_kept(laid.kept) if now else rows, *given)
    _laid(ticket, laid)
    return found


KEEPING: dict[passes.Pass, passes.Pass] = {passes.evaluate: evaluate, passes.bend: bend, passes.slope: slope}
"""The passes that leave something on the shelf, by those they stand for."""
