"""The float32 product of directions with the training rows, and how far it may be rounded."""

from __future__ import annotations

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


def respond(rows: Rows, direction: FloatArray, out: FloatArray) -> FloatArray:
    """``direction' X'`` in float32: (p, B) by ``out`` of shape (B M, n) to (B, M, n).

    Raises
    ------
    RequestError
        The directions do not fit float32.
    """
    product = rows.collect(_respond, narrowed(rows.side_by_side(direction)), out=out, axis=1)
    return np.asarray(product.reshape(rows.outputs, -1, rows.n).swapaxes(0, 1))


def _respond(block: RowBlock, out: FloatArray, narrow: FloatArray) -> None:
    for _ in responses(block, narrow, out):
        pass


def response_error(rows: Rows, direction: FloatArray, square_norms: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Bound the rounding of `respond`: ``|error_ti| <= scale_t row_i``, scale of shape (B,), row of shape (n,).

    A float32 sum of p products of rounded factors errs by at most (p + 3) 2^-24 of the product of the norms.
    """
    unit = (rows.p + 3) * 2.0**-24 * 1.01
    return unit * np.linalg.norm(direction, axis=0), np.sqrt(square_norms)
