"""The float32 product of directions with the training rows, and how far it may be rounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.flips.order.apart import responses
from mlflow_relabel_audit.likelihood import FloatArray
from mlflow_relabel_audit.rows import RowBlock, Rows


def narrowed(direction: FloatArray) -> FloatArray:
    """Directions as float32; a RequestError where they do not fit it."""
    try:
        with np.errstate(over="raise"):
            return np.ascontiguousarray(direction, dtype=np.float32)
    except FloatingPointError as error:
        raise RequestError(
            f"influences: up to {np.abs(direction).max():.1e} per unit of a feature, beyond float32; scale the "
            "features (StandardScaler) or strengthen the penalty, and log that model"
        ) from error


def respond(rows: Rows, direction: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """``direction' X'`` in float32: (p, B) to (B, M, n), in ``out`` of shape (B M, n) where it is given.

    Raises
    ------
    RequestError
        The directions do not fit float32.
    """
    narrow = narrowed(rows.side_by_side(direction))
    if out is None:
        out = np.empty((narrow.shape[1], rows.n), dtype=np.float32)
    product = rows.collect(_respond, narrow, out=out, axis=1)
    return np.asarray(product.reshape(rows.outputs, -1, rows.n).swapaxes(0, 1))


def _respond(block: RowBlock, out: FloatArray, narrow: FloatArray) -> None:
    for _ in responses(block, narrow, out):
        pass


def responded(block: RowBlock, narrow: FloatArray) -> FloatArray:
    """``X direction`` of one block in float32, for `narrowed` directions of shape (p, B): shape (rows, B)."""
    out = np.empty((narrow.shape[1], block.rows), dtype=np.float32)
    _respond(block, out, narrow)
    return out.T


def response_scale(rows: Rows, direction: FloatArray) -> FloatArray:
    """Bound the rounding of `respond` and `responded`: ``|error_ti| <= scale_t ||x_i||``; scale of shape (B,).

    A float32 sum of p products of rounded factors errs by at most (p + 3) 2^-24 of the product of the norms.
    """
    unit = (rows.p + 3) * 2.0**-24 * 1.01
    return np.asarray(unit * np.linalg.norm(direction, axis=0))


class ResponseBounds:
    """Upper bounds of ``|x_i . u_t|``, of predictions that are asked for in the order of a queue.

    A pass over the rows costs much the same for one prediction as for several, so the next ones in the queue are worked
    out along with the one that is asked for.

    Parameters
    ----------
    rows : Rows
        of one output.
    direction : ndarray of shape (p, T)
        u_t.
    square_norms : ndarray of shape (n,)
        of the rows.
    queue : sequence of int
        every t that will be asked for.
    ahead : int
        predictions that are worked out at once.
    """

    def __init__(
        self, rows: Rows, direction: FloatArray, square_norms: FloatArray, queue: Sequence[int], ahead: int
    ) -> None:
        self._rows, self._direction = rows, direction
        self._scale, self._row = response_scale(rows, direction), np.sqrt(square_norms)
        self._queue, self._ahead = np.asarray(queue, dtype=np.intp), ahead
        self._held = np.empty((0, rows.n), dtype=np.float32)
        self._waiting = self._held

    def next(self, count: int) -> Iterator[tuple[slice, FloatArray]]:
        """Yield those of the next ``count`` predictions of the queue: which of them, and float32 of shape (b, n)."""
        done = 0
        while done < count:
            if not len(self._waiting):
                self._work_out()
            part = self._waiting[: count - done]
            self._waiting = self._waiting[len(part) :]
            yield slice(done, done + len(part)), part
            done += len(part)
        if not (len(self._waiting) or len(self._queue)):  # they are held no longer than they are needed
            self._held = self._waiting = self._held[:0].copy()

    def _work_out(self) -> None:
        asked, self._queue = self._queue[: self._ahead], self._queue[self._ahead :]
        if len(self._held) != len(asked):
            self._held = np.empty((len(asked), self._rows.n), dtype=np.float32)
        respond(self._rows, self._direction[:, asked], self._held)
        for one, scale in zip(np.abs(self._held, out=self._held), self._scale[asked], strict=True):
            one += scale * self._row
        self._waiting = self._held
