"""Which columns of a table the model takes, which hold labels, ids, weights and groups."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.pipeline import Pipeline

from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.rows import ParquetSource
from mlflow_relabel_audit.tracking.credentials import one_line
from mlflow_relabel_audit.tracking.model import LoadedModel
from mlflow_relabel_audit.tracking.tables import some


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are not features."""

    target: str | None = None
    row_id: str | None = None
    weight: str | None = None
    groups: tuple[str, ...] = ()

    def reserved(self) -> set[str]:
        """Columns that a model without feature names does not take."""
        named = {self.target, self.row_id, self.weight, *self.groups}
        return {name for name in named if name is not None}


@dataclass(frozen=True)
class TableRows:
    """Rows as the model's fit took them, with what belongs to each.

    Parameters
    ----------
    X : DataFrame, Series of text, ndarray or CSR matrix, n rows
    y : ndarray of shape (n,) or None
        Labels as the model knows them; None where evaluation data has none.
    weight : ndarray of shape (n,), float64, or None
    row_ids : ndarray of shape (n,)
        Unique; positions where no column names them.
    groups : DataFrame of n rows or None
    source : str
        Where they came from, in words, without credentials.
    dataset : tuple of str or None
        Name and digest of the MLflow dataset, where they came from one.
    messages : tuple of str
    """

    X: Any = field(repr=False)
    y: Any = field(repr=False)
    row_ids: Any = field(repr=False)
    source: str
    weight: Any = field(default=None, repr=False)
    groups: pd.DataFrame | None = field(default=None, repr=False)
    dataset: tuple[str, str] | None = None
    messages: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.row_ids)

    def frame(self) -> pd.DataFrame:
        """The features as a table under the row ids, for reports that may show rows."""
        if isinstance(self.X, pd.Series):
            table: pd.DataFrame = self.X.to_frame(str(self.X.name or "text"))
        elif isinstance(self.X, ParquetSource):
            raise RequestError(
                f"include_rows: {self.source} is read a part at a time, a report would hold all of it; leave out "
                "include_rows, or memory_limit and dask"
            )
        else:
            table = pd.DataFrame(self.X.toarray() if sp.issparse(self.X) else self.X)
        table.index = pd.Index(self.row_ids)
        table.columns = table.columns.map(str)
        return table

    def row(self, row_id: Any) -> TableRows:
        """The one row of that id; ids from a command line are text, so they are compared as text too.

        Raises
        ------
        RequestError
            There is none.
        """
        ids = pd.Series(self.row_ids)
        found = np.flatnonzero((ids == row_id).to_numpy() | (ids.map(str) == str(row_id)).to_numpy())
        if not len(found):
            raise RequestError(
                f"row {row_id!r}: {self.source} has no row of that id; its ids begin with {some(ids, 5)}"
            )
        return self.take(found[:1])

    def take(self, index: Any) -> TableRows:
        """The rows at integer positions ``index``, in that order."""

        def pick(values: Any) -> Any:
            if values is None:
                return None
            return values.iloc[index] if isinstance(values, (pd.DataFrame, pd.Series)) else values[index]

        return replace(
            self,
            X=pick(self.X),
            y=pick(self.y),
            row_ids=pick(self.row_ids),
            weight=pick(self.weight),
            groups=pick(self.groups),
        )


def from_table(
    frame: pd.DataFrame,
    model: LoadedModel,
    columns: Columns,
    *,
    what: str,
    source: str,
    training: bool,
    dataset: tuple[str, str] | None = None,
    beside: pd.DataFrame | None = None,
) -> TableRows:
    """Split a table into features, labels, ids, weights and groups, and check each.

    Parameters
    ----------
    frame : DataFrame
        Unique column names, at least one row.
    what : str
        ``training data`` or ``evaluation data``, for messages.
    training : bool
        Training rows must have labels of both classes, and all named columns; evaluation rows may lack
        labels, ids, weights and groups.
    beside : DataFrame, optional
        Labels, ids, weights and groups of all rows, where ``frame`` holds only the first of them.

    Raises
    ------
    RequestError
        A column is missing; labels, ids, weights or features are missing or not what the model takes.
    """
    messages: list[str] = []
    named = {
        "id": columns.row_id,
        "weight": columns.weight if training else None,
        **{f"group {name}": name for name in columns.groups},
    }
    for role, name in named.items():
        if name is not None and name not in frame.columns and (training or role == "weight"):
            raise RequestError(f"{what}: no {role.split()[0]} column {name!r}; its columns are {some(frame.columns)}")
    rest = frame if beside is None else beside
    y = _labels(
        rest if columns.target in rest.columns else frame,
        model,
        columns,
        what=what,
        training=training,
        messages=messages,
    )
    ids = _row_ids(rest, columns.row_id, what, messages)
    weight = _weights(rest, columns.weight, what) if training else None
    known = bool(columns.groups) and set(columns.groups) <= set(frame.columns)
    groups = rest[list(columns.groups)] if known else None
    X = _features(frame, model, columns.reserved(), what)
    _probe(X, model, what)
    return TableRows(X, y, ids, source, weight, groups, dataset, tuple(messages))


def from_source(
    source: ParquetSource,
    model: LoadedModel,
    columns: Columns,
    *,
    what: str,
    shown: str,
    dataset: tuple[str, str] | None = None,
) -> TableRows:
    """Training rows that are read a part at a time: what is beside the features is read now, the features later.

    Raises
    ------
    RequestError
        As `from_table`; that features are missing in a later row shows when it is read.
    """
    head = source.read(0, min(len(source), 5))
    named = [name for name in source.columns if name in columns.reserved()]
    beside = source.select(named).frame() if named else pd.DataFrame(index=pd.RangeIndex(len(source)))
    rows = from_table(head, model, columns, what=what, source=shown, training=True, dataset=dataset, beside=beside)
    if isinstance(rows.X, pd.Series):
        return replace(rows, X=source.series(str(rows.X.name)))
    names, array = _feature_names(head, model, columns.reserved(), what)
    return replace(rows, X=source.select(names, array=array))


def _labels(
    frame: pd.DataFrame,
    model: LoadedModel,
    columns: Columns,
    *,
    what: str,
    training: bool,
    messages: list[str],
) -> Any:
    target = columns.target
    if target is None:
        if not training:
            messages.append(f"{what}: no target column named, so its labels are unknown")
            return None
        raise RequestError(f"{what}: name the column of labels with --target; its columns are {some(frame.columns)}")
    if target not in frame.columns:
        if not training:
            messages.append(f"{what}: has no column {target!r}, so its labels are unknown")
            return None
        raise RequestError(f"{what}: no target column {target!r}; its columns are {some(frame.columns)}")
    values = frame[target]
    missing = int(values.isna().sum())
    if missing:
        raise RequestError(
            f"{what}: {missing} of {len(frame)} labels in {target!r} are missing; drop those rows or label them"
        )
    labels = _as_classes(values, _classes(model.estimator), f"{what}: target {target!r}", messages)
    if training and len(pd.unique(labels)) < 2:
        raise RequestError(
            f"{what}: target {target!r} holds one class only ({labels[0]!r}); pass the rows of both classes"
        )
    return labels


def _classes(estimator: Any) -> list[Any] | None:
    try:
        return list(estimator.classes_)
    except AttributeError:
        return None  # not a fitted classifier: the auditor says so better


def _as_classes(values: pd.Series, classes: list[Any] | None, what: str, messages: list[str]) -> Any:
    """Labels as the model knows them: csv turns '0' into 0 and 'True' into True, which is undone here."""
    labels = values.to_numpy()
    if classes is None or pd.Series(labels).isin(classes).all():
        return labels
    by_text = {str(label): label for label in classes}
    text = values.map(str)
    if text.isin(list(by_text)).all():
        messages.append(f"{what}: labels read as {values.dtype}, matched to the model's classes by their text")
        return np.array([by_text[label] for label in text], dtype=np.asarray(classes).dtype)
    unknown = [value for value in pd.unique(labels) if value not in classes]
    raise RequestError(
        f"{what}: got {some([repr(value) for value in unknown], 3)} beside the model's classes "
        f"{[str(label) for label in classes]}; pass the labels the model was trained on"
    )


def _row_ids(frame: pd.DataFrame, name: str | None, what: str, messages: list[str]) -> Any:
    if name is None:
        return np.arange(len(frame))
    if name not in frame.columns:
        messages.append(f"{what}: has no id column {name!r}, so rows are named by position")
        return np.arange(len(frame))
    ids = frame[name]
    if ids.isna().any():
        raise RequestError(f"{what}: {int(ids.isna().sum())} ids in {name!r} are missing; fill them or drop the flag")
    if not ids.is_unique:
        twice = ids[ids.duplicated()].unique().tolist()
        raise RequestError(f"{what}: ids in {name!r} are not unique ({some(twice, 3)}); pass a column that is")
    return ids.to_numpy()


def _weights(frame: pd.DataFrame, name: str | None, what: str) -> Any:
    if name is None:
        return None
    try:
        weight = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{what}: weights in {name!r} are not numbers ({one_line(error)})") from error
    bad = int(np.count_nonzero(~np.isfinite(weight) | (weight < 0)))
    if bad:
        raise RequestError(f"{what}: {bad} weights in {name!r} are missing, infinite or negative; correct those rows")
    return weight


def _features(frame: pd.DataFrame, model: LoadedModel, reserved: set[str], what: str) -> Any:
    first = _first_step(model.estimator)
    if isinstance(first, (CountVectorizer, HashingVectorizer)):
        return _text(frame, model, reserved, what)
    names, array = _feature_names(frame, model, reserved, what)
    return frame[names].to_numpy() if array else frame[names]


def _feature_names(frame: pd.DataFrame, model: LoadedModel, reserved: set[str], what: str) -> tuple[list[str], bool]:
    """Columns the model takes, and whether it takes them as an array."""
    first = _first_step(model.estimator)
    fitted = _attribute(model.estimator, first, "feature_names_in_")
    names = [str(name) for name in fitted] if fitted is not None else list(model.input_names or ())
    count = _attribute(model.estimator, first, "n_features_in_")
    if not names:
        names = [name for name in frame.columns if name not in reserved]
        if count is not None and len(names) != count:
            raise RequestError(
                f"{what}: the model takes {count} features and has no names for them, the table has "
                f"{len(names)} "
                f"columns beside the named ones; drop what is not a feature: {some(names)}"
            )
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise RequestError(
            f"{what}: {len(missing)} of the model's {len(names)} features are missing ({some(missing, 5)}); "
            f"its columns are {some(frame.columns, 5)}"
        )
    # fitted on an array, a model warns about names, so it gets an array again
    return names, not (fitted is not None or count is None)


def _text(frame: pd.DataFrame, model: LoadedModel, reserved: set[str], what: str) -> pd.Series:
    candidates = [name for name in model.input_names or () if name in frame.columns]
    if len(candidates) != 1:
        candidates = [name for name in frame.columns if name not in reserved]
    if len(candidates) > 1:
        candidates = [name for name in candidates if pd.api.types.is_string_dtype(frame[name].dtype)]
    if len(candidates) != 1:
        raise RequestError(
            f"{what}: the model takes one column of text, the table has {len(candidates)} that could be it "
            f"({some(candidates or frame.columns)}); keep one"
        )
    text: pd.Series = frame[candidates[0]]
    if text.isna().any():
        raise RequestError(
            f"{what}: {int(text.isna().sum())} texts in {candidates[0]!r} are missing; drop those rows or fill them"
        )
    return text


def _first_step(estimator: Any) -> Any:
    best = getattr(estimator, "best_estimator_", None)
    if best is not None:
        return _first_step(best)
    if isinstance(estimator, Pipeline):
        steps = [step for _, step in estimator.steps if step not in (None, "passthrough")]
        return _first_step(steps[0]) if steps else estimator
    return estimator


def _attribute(estimator: Any, first: Any, name: str) -> Any:
    for holder in (estimator, first):
        try:
            return getattr(holder, name)
        except AttributeError:
            continue
    return None


def _probe(X: Any, model: LoadedModel, what: str) -> None:
    """Let the model itself say whether it takes these rows; whether NaN is one of them only it knows."""
    missing = np.asarray(pd.isna(X))
    hollow = np.flatnonzero(missing.any(axis=1) if missing.ndim == 2 else missing)
    index = np.unique(np.concatenate([np.arange(min(5, len(X))), hollow[:50]]))
    rows = X.iloc[index] if isinstance(X, (pd.DataFrame, pd.Series)) else X[index]
    try:
        model.estimator.predict(rows)
    except (ValueError, TypeError, KeyError) as error:
        if len(hollow) and missing.ndim == 2:
            columns = X.columns if isinstance(X, pd.DataFrame) else np.arange(X.shape[1])
            names = [str(name) for name in np.asarray(columns)[missing.any(axis=0)]]
            raise RequestError(
                f"{what}: {len(hollow)} rows have missing features ({some(names, 5)}) and the model "
                "takes none; "
                "drop those rows, or impute in the model's pipeline"
            ) from error
        raise RequestError(
            f"{what}: the model does not take these rows ({one_line(error)}); pass what its fit took"
        ) from error
    except AttributeError:
        return  # nothing that predicts: the auditor names what it supports
