"""What a caller passes, checked: rows as the model takes them, labels, weights, ids, groups."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import sklearn

from mlflow_relabel_audit.errors import RequestError, UnsupportedModelError
from mlflow_relabel_audit.problem import FloatArray, Problem, as_matrix
from mlflow_relabel_audit.rows import (
    READING,
    ClusterStore,
    MemoryStore,
    ParquetSource,
    PassingStore,
    Progress,
    Rows,
    Spool,
    Telling,
)
from mlflow_relabel_audit.rows.store import places

CHUNK_ROWS = 2**16
"""Most rows that are transformed at once where they are not kept in memory."""

_BALANCES_COUNTS = tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 7)


def training_rows(
    problem: Problem,
    transformer: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    memory_limit: int | None = None,
    dask: Any = None,
    progress: Progress | None = None,
) -> Rows:
    """Training rows through the transformer steps, with their labels and weights.

    With a memory limit they are transformed part by part and kept on disk; with Dask, by its workers and there.
    ``progress`` is told of that, and afterwards of passes that last.

    Raises
    ------
    RequestError
        Rows, labels and weights do not fit one another or the model, or the labels are of one class.
    UnsupportedModelError
        Balanced class weights and sample weights under a scikit-learn before 1.7.
    StoreError
        The rows, or the scratch folder they are kept in, cannot be read or written.
    """
    labels = problem.encode(y)
    expected = problem.features
    kept: Any
    if dask is not None:
        source, head = _source(X)
        transform = partial(_transform, transformer)
        kept = ClusterStore(dask, source, transform, transform(head), problem.intercept, progress)
    elif memory_limit is None:
        kept = MemoryStore(_transform(transformer, whole(X)), problem.intercept)
    else:
        spool, telling, done = Spool(), Telling(progress, len(labels), READING, lasting=0.0), 0
        telling.tell(done)
        for chunk in chunks(X, memory_limit, expected):
            features = _transform(transformer, chunk)
            spool.add(features)
            done += features.shape[0]
            telling.tell(done)
        telling.end()
        kept = spool.store(problem.intercept, memory_limit)
    kept.progress = progress
    n, width = kept.shape
    if width != expected:
        raise RequestError(f"training rows: got {width} features; the model has {expected} coefficients")
    if len(labels) != n:
        raise RequestError(f"training rows: got {len(labels)} labels for {n} rows; pass one per row")
    if len(np.unique(labels)) < 2:
        raise RequestError(
            f"training rows: got {n} labels of one class; pass the rows the model was trained on, of every class"
        )
    missing = sorted(set(range(len(problem.classes))) - set(np.unique(labels).astype(int)))
    if missing:
        names = [problem.classes[code] for code in missing]
        raise RequestError(
            f"training rows: got {n} labels, none of class {names[0]!r}; pass the rows the model was trained on, every "
            "class among them"
        )
    weight = np.ones(n) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    if weight.shape != (n,):
        raise RequestError(f"sample weights: got shape {weight.shape} for {n} rows; pass one per row")
    if not np.all(np.isfinite(weight)) or np.any(weight < 0) or not np.any(weight > 0):
        raise RequestError("sample weights: got negative, infinite, missing or only zero ones; pass those given to fit")
    if _BALANCES_COUNTS and problem.class_weight.balanced and np.ptp(weight) > 0:
        raise UnsupportedModelError(
            "model: class_weight='balanced' with sample weights: this scikit-learn balances the numbers of rows, 1.7 "
            "and later their weights, which is what this audit knows; upgrade it and fit again, or pass class_weight "
            "as numbers"
        )
    return Rows(kept, labels, weight, intercept=problem.intercept, outputs=problem.outputs)


def parquet_rows(
    estimator: Any,
    path: Any,
    target: str,
    *,
    features: Sequence[str] | None = None,
    text: str | None = None,
    weight_column: str | None = None,
    id_column: str | None = None,
) -> tuple[ParquetSource, Any, Any, Any]:
    """Rows of Parquet files as a source, their labels, weights and ids (None where no column is named).

    Parameters
    ----------
    features : sequence of str, optional
        columns that the model's fit took, in that order; by default its ``feature_names_in_``, else all that are
        not named here.
    text : str, optional
        the one column of text, where the model's first step takes text.

    Raises
    ------
    RequestError
        A named column is missing.
    StoreError
        The files cannot be read, or have not all the same columns.
    """
    source = ParquetSource(path)
    fitted = features or getattr(estimator, "feature_names_in_", None)
    others = [name for name in source.columns if name not in (target, weight_column, id_column)]
    names = others if fitted is None else [str(name) for name in fitted]
    rows = source.select(names, array=fitted is None) if text is None else source.series(text)
    beside = (None if name is None else source.series(name).frame().to_numpy() for name in (weight_column, id_column))
    return rows, source.series(target).frame().to_numpy(), *beside


def whole(X: Any) -> Any:
    """Rows at once, also those of a source."""
    return X.frame() if isinstance(X, ParquetSource) else X


def chunks(X: Any, memory_limit: int, features: int) -> Iterator[Any]:
    """Rows as the model's fit took them, so few at a time that their features take a sixteenth of the limit."""
    length = max(256, min(CHUNK_ROWS, memory_limit // (16 * 8 * max(features, 1))))
    if isinstance(X, ParquetSource):
        yield from X.chunks(length)
        return
    X = indexable(X)
    for start in range(0, X.shape[0], length):
        yield places(X)[start : start + length]


def indexable(X: Any) -> Any:
    """Rows that can be cut: frames and series as they are, CSR, arrays."""
    if isinstance(X, (pd.DataFrame, pd.Series)):
        return X
    return sp.csr_matrix(X) if sp.issparse(X) else np.asarray(X)


def byte_size(size: int | str) -> int:
    """Bytes of a size: a number, or text like ``"1GiB"``, ``"500 MB"``.

    Raises
    ------
    RequestError
        It is neither, or not positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", str(size), flags=re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise RequestError(f"memory limit: got {size!r}; pass bytes, or a size like 1GiB or 500MB")
    unit = 1024 if found[3] else 1000
    return int(float(found[1]) * unit ** " kmgt".index(found[2].lower() or " "))


def evaluation_rows(problem: Problem, transformer: Any, X: Any, *, passing: bool = False) -> Rows:
    """Rows to predict through the transformer steps; their labels are unknown.

    With ``passing`` they are transformed a block at a time when they are asked for, and not kept.

    Raises
    ------
    RequestError
        The transformer refuses them, or they have not the model's number of features.
    """
    expected = problem.features
    features: Any
    empty = not len(X) if isinstance(X, ParquetSource) else np.shape(X)[:1] == (0,)
    if empty:  # transformers refuse a table without rows
        features = np.zeros((0, expected))
    elif passing:
        source, head = _source(X)
        transform = partial(_transform, transformer)
        features = PassingStore(source, transform, transform(head), problem.intercept)
    else:
        features = _transform(transformer, whole(X))
    count, width = features.shape
    if width != expected:
        raise RequestError(f"evaluation rows: got {width} features; the model takes {expected}")
    return Rows(features, np.full(count, np.nan), np.ones(count), intercept=problem.intercept, outputs=problem.outputs)


def _source(X: Any) -> tuple[Any, Any]:
    """Rows that can be cut, and the first two of them."""
    if isinstance(X, ParquetSource):
        return X, X.read(0, 2)
    source = indexable(X)
    return source, places(source)[:2]


def _transform(transformer: Any, X: Any) -> Any:
    if transformer is None:
        return as_matrix(X)
    try:
        return as_matrix(transformer.transform(X))
    except RequestError:
        raise
    except Exception as error:
        detail = " ".join(str(error).split())
        raise RequestError(
            f"features: the model's preprocessing refused them ({detail}); pass rows as its fit took them"
        ) from error


def evaluation_labels(problem: Problem, y: Any, count: int) -> FloatArray:
    """True labels as class codes, NaN where missing, shape (count,).

    Raises
    ------
    RequestError
        There is not one per row, or one is of neither class.
    """
    values = pd.Series(y).reset_index(drop=True)
    if len(values) != count:
        raise RequestError(f"evaluation rows: got {len(values)} labels for {count} rows; pass one per row")
    out = np.full(count, np.nan)
    known = values.notna().to_numpy()
    if known.any():
        out[known] = problem.encode(np.asarray(values[known].tolist()))
    return out


def row_ids(ids: Any, count: int, what: str) -> Any:
    """Ids of rows, positions where none are given.

    Raises
    ------
    RequestError
        There is not one per row, or an id repeats.
    """
    if ids is None:
        return np.arange(count)
    values = np.asarray(ids)
    if values.shape != (count,):
        raise RequestError(f"{what}: got {values.size} row ids for {count} rows; pass one per row")
    if len(pd.unique(pd.Series(values))) != count:
        raise RequestError(f"{what}: row ids repeat; pass ids that name each row once")
    return values


def one_row(x: Any, has_transformer: bool) -> Any:
    """One row as a table of one, whether a text, a series, a vector or a table already."""
    if isinstance(x, str):
        return [x]
    if isinstance(x, pd.Series) and has_transformer and x.name is not None and len(x) > 1:
        return x.to_frame().T.infer_objects()
    if not sp.issparse(x) and not isinstance(x, pd.DataFrame) and np.ndim(x) == 1 and np.size(x) > 1:
        return np.asarray(x)[None, :]
    return x


def only_row(rows: Rows) -> FloatArray:
    """The one row of a table of one, dense, with the one where an intercept is fitted, shape (p,).

    Raises
    ------
    RequestError
        There are more rows, or none.
    """
    if rows.n != 1:
        raise RequestError(f"contest: got {rows.n} rows; pass one")
    return rows.columns(np.arange(1))[:, 0]


def group_frame(groups: Any, ids: Any, what: str) -> pd.DataFrame:
    """Group attributes as a frame indexed by row id, a column per attribute.

    Raises
    ------
    RequestError
        There is not one value per row.
    """
    if isinstance(groups, pd.DataFrame):
        frame = groups
    elif isinstance(groups, pd.Series):
        frame = groups.to_frame(groups.name if groups.name is not None else "group")
    else:
        values = np.asarray(groups)
        names = ["group"] if values.ndim == 1 else [f"group_{j}" for j in range(values.shape[1])]
        frame = pd.DataFrame(values.reshape(len(values), -1), columns=names)
    if len(frame) != len(ids):
        raise RequestError(f"groups: got {len(frame)} values for {len(ids)} {what}; pass one per row")
    return frame.set_axis(pd.Index(np.asarray(ids)), axis=0)
