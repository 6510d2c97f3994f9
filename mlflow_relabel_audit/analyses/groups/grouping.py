"""Groups of training and evaluation rows: aligned by row id, missing values named, columns crossed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.problem import IntArray

ALL = "(all)"
MISSING = "(missing)"
OTHER = "(other)"
CROSSED = " × "


@dataclass(frozen=True)
class Attribute:
    """One group column, or a crossing of several.

    Attributes
    ----------
    name : str
    levels : tuple of str
        the groups, the one with most training rows first, `OTHER` last where groups were pooled.
    train : ndarray of shape (N,), int
        every training row's level.
    evaluation : ndarray of shape (T,), int, or None
    pooled : int
        how many groups `OTHER` holds.
    """

    name: str
    levels: tuple[str, ...]
    train: IntArray = field(repr=False)
    evaluation: IntArray | None = field(repr=False)
    pooled: int = 0


def align(table: Any, ids: pd.Index[Any] | None, what: str) -> tuple[pd.DataFrame, pd.Index[Any]]:
    """Group columns as text, one row per id, and the ids.

    A frame or series is matched by its index, or by position where that is a plain 0, 1, ... of the right
    length that does not name the ids; an array is matched by position.

    Raises
    ------
    RequestError
        No column, ids twice, or rows that do not match: the message gives both numbers.
    """
    if isinstance(table, pd.Series):
        table = table.to_frame(table.name if table.name is not None else "group")
    if not isinstance(table, pd.DataFrame):
        table = pd.DataFrame(table if isinstance(table, Mapping) else np.asarray(table))
        table.columns = pd.Index([c if isinstance(c, str) else f"group{c or ''}" for c in table.columns])
    if table.shape[1] == 0 or len(table) == 0:
        raise RequestError(
            f"{what}: got {len(table)} rows and {table.shape[1]} columns; pass one column per group attribute"
        )
    if table.index.has_duplicates:
        twice = table.index[table.index.duplicated()].tolist()[0]
        raise RequestError(f"{what}: row id {twice!r} occurs twice in its index; pass one row per row id")
    names = [str(c) for c in table.columns]
    if len(set(names)) < len(names):
        raise RequestError(f"{what}: got columns {names}; give each group attribute a name of its own")
    if ids is not None:
        places = table.index.get_indexer(ids)
        if (places >= 0).all():
            table = table.iloc[places]
        elif not (len(table) == len(ids) and table.index.equals(pd.RangeIndex(len(ids)))):
            found = int((places >= 0).sum())
            raise RequestError(
                f"{what}: its {len(table)} rows name {found} of the {len(ids)} row ids; index it by row id, "
                "or pass an array in the order of the rows"
            )
    index = table.index if ids is None else ids
    columns = {name: as_text(table.iloc[:, j]) for j, name in enumerate(names)}
    return pd.DataFrame(columns), index


def as_text(values: pd.Series[Any]) -> pd.Series[Any]:
    """Group values as text, gaps as `MISSING`; 1.0 as 1, which is what a gap makes of an integer."""
    codes, distinct = pd.factorize(values.astype(object), use_na_sentinel=True)
    names = np.array([*map(_name, distinct), MISSING], dtype=object)
    text: pd.Series[Any] = pd.Series(list(names[codes]), dtype=object)  # code -1 is the last name
    return text


def _name(value: Any) -> str:
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def attributes_of(train: pd.DataFrame, evaluation: pd.DataFrame | None, max_groups: int) -> list[Attribute]:
    """Every column, every pair of columns, and all columns together where there are more than two.

    Raises
    ------
    RequestError
        The two tables have different columns.
    """
    names = list(train.columns)
    if evaluation is not None and set(evaluation.columns) != set(names):
        raise RequestError(
            f"groups_eval: got columns {list(evaluation.columns)} beside groups_train's {names}; pass the "
            "same group attributes for both"
        )
    chosen: list[tuple[str, ...]] = [(name,) for name in names] + list(combinations(names, 2))
    if len(names) > 2:
        chosen.append(tuple(names))
    return [_attribute(columns, train, evaluation, max_groups) for columns in chosen]


def _attribute(
    columns: tuple[str, ...], train: pd.DataFrame, evaluation: pd.DataFrame | None, max_groups: int
) -> Attribute:
    def joined(table: pd.DataFrame) -> pd.Series[Any]:
        text = table[columns[0]]
        for name in columns[1:]:
            text = text + CROSSED + table[name]
        return text

    of_train = joined(train)
    of_eval = joined(evaluation) if evaluation is not None else pd.Series([], dtype=object)
    counts = of_train.value_counts()
    extra = of_eval.value_counts()
    order = sorted({*counts.index, *extra.index}, key=lambda v: (-counts.get(v, 0), -extra.get(v, 0), v))
    kept, rest = (order, []) if len(order) <= max_groups else (order[: max_groups - 1], order[max_groups - 1 :])
    levels = (*kept, f"{OTHER[:-1]}: {len(rest)} groups)") if rest else tuple(kept)
    index = pd.Index(kept)

    def coded(text: pd.Series[Any]) -> IntArray:
        codes = index.get_indexer(pd.Index(text)).astype(np.int64)
        return np.where(codes < 0, len(kept), codes)

    return Attribute(
        name=CROSSED.join(columns),
        levels=levels,
        train=coded(of_train),
        evaluation=coded(of_eval) if evaluation is not None else None,
        pooled=len(rest),
    )


def places_of(values: Any, ids: pd.Index[Any], what: str, where: str) -> IntArray:
    """Position of each value among ``ids``.

    Raises
    ------
    RequestError
        Some are not there, or ``ids`` is ambiguous.
    """
    places = np.asarray(ids.get_indexer(pd.Index(values)), dtype=np.int64)
    if (places < 0).any():
        odd = pd.Index(values)[places < 0].unique()
        raise RequestError(
            f"{what}: {len(odd)} ids (first: {odd.tolist()[0]!r}) are not among the {len(ids)} ids of "
            f"{where}; pass tables of the same audit"
        )
    return places


def classes_of(predictions: pd.DataFrame, train_labels: Any, classes: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """Return the negative and the positive class, read off margins and predictions where they are not given.

    Of more than two classes all, in the order given, or sorted.

    Raises
    ------
    RequestError
        They cannot be told, or a label is neither.
    """
    labels = np.asarray(pd.unique(pd.Series(np.asarray(train_labels)).dropna())).tolist()
    if classes is None and "flips_to" in predictions.columns:
        seen = {*labels, *predictions["predicted"].tolist(), *predictions["flips_to"].dropna().tolist()}
        classes = tuple(sorted(seen, key=lambda v: (str(type(v)), v)))
    if classes is None:
        above = predictions["margin"].to_numpy(dtype=np.float64) > 0.0
        positive = np.asarray(pd.unique(predictions["predicted"][above]))
        negative = np.asarray(pd.unique(predictions["predicted"][~above]))
        known = {*positive.tolist(), *negative.tolist()}
        rest = [v for v in labels if v not in known]
        if len(positive) == 1 and len(negative) == 0 and len(rest) == 1:
            negative = np.array(rest, dtype=object)
        if len(negative) == 1 and len(positive) == 0 and len(rest) == 1:
            positive = np.array(rest, dtype=object)
        if len(positive) != 1 or len(negative) != 1 or positive[0] == negative[0]:
            raise RequestError(
                f"predictions: {positive.tolist()} predicted above the threshold and {negative.tolist()} "
                "below; pass classes=(negative, positive)"
            )
        classes = (negative.tolist()[0], positive.tolist()[0])
    odd = [v for v in labels if v not in classes]
    if odd or pd.isna(np.asarray(train_labels, dtype=object)).any():
        raise RequestError(
            f"train_labels: got {odd[:3] or 'missing values'} beside the classes {list(classes)}; pass the "
            "labels the model was trained on"
        )
    return classes


def row_set_masks(
    row_sets: Mapping[str, Any] | None, ids: pd.Index[Any]
) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Named sets of training rows as masks of shape (N,).

    Raises
    ------
    RequestError
        A mask of another length, or ids that are not training rows.
    """
    masks: dict[str, np.ndarray[Any, np.dtype[np.bool_]]] = {}
    for name, given in (row_sets or {}).items():
        values = np.asarray(given)
        if values.dtype == np.bool_:
            if isinstance(given, pd.Series) and not given.index.equals(pd.RangeIndex(len(given))):
                values = given.index[values].to_numpy()
            elif len(values) != len(ids):
                raise RequestError(
                    f"row_sets[{name!r}]: a mask of {len(values)} rows beside {len(ids)} training rows; "
                    "pass one value per training row, or row ids"
                )
        if values.dtype != np.bool_:
            mask = np.zeros(len(ids), dtype=np.bool_)
            mask[places_of(values, ids, f"row_sets[{name!r}]", "groups_train")] = True
            values = mask
        masks[str(name)] = values
    return masks
