"""Tables that name training rows, read and held against them: reviewed suspects, and sets of rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.tracking import Store, TableRows
from mlflow_relabel_audit.tracking.tables import read_table, some

_NAME = re.compile(r"[\w.-]+", re.ASCII)
_YES = {"yes", "y", "true", "t", "1", "x"}
_NO = {"no", "n", "false", "f", "0", ""}


def read_review(store: Store, suspects: str, folder: Path) -> pd.DataFrame:
    """The reviewed table, its train ids as they are written.

    Raises
    ------
    RequestError, StoreError
        As `read_table`.
    """
    return _read_with_ids(store, suspects, folder, "suspects")


def read_row_sets(store: Store, files: Mapping[str, str], training: TableRows, folder: Path) -> dict[str, Any]:
    """Named sets of training rows, bool of shape (n,) each.

    Parameters
    ----------
    files : mapping of name to path or URI
        csv or parquet with a column train_id (or a single column, whatever its name).

    Raises
    ------
    RequestError
        A name that cannot be part of a metric's, a table without ids, or ids that are not training rows.
    """
    masks = {}
    for number, (name, uri) in enumerate(files.items()):
        what = f"row set {name}"
        if not _NAME.fullmatch(name):
            raise RequestError(f"{what}: name a set with letters, digits, '_', '-' and '.' only")
        place = folder / f"set{number}"
        place.mkdir(parents=True)
        table = _read_with_ids(store, uri, place, what)
        if "train_id" not in table:
            raise RequestError(f"{what}: got columns {some(table.columns)}; pass a table with a column train_id")
        positions = matched(table["train_id"], training.row_ids)
        if unknown := [value for value, at in zip(table["train_id"], positions, strict=True) if at < 0]:
            raise RequestError(
                f"{what}: {len(unknown)} of {len(table)} ids are not among the training rows ({some(unknown, 5)}); "
                f"those are named {some(training.row_ids, 3)}"
            )
        masks[name] = np.zeros(len(training.row_ids), dtype=bool)
        masks[name][positions] = True
    return masks


def _read_with_ids(store: Store, uri: str, folder: Path, what: str) -> pd.DataFrame:
    """A table whose train ids are as they are written; the only column of a table is taken for them."""
    table = read_table(store, uri, folder, what)
    if table.shape[1] == 1:
        table.columns = pd.Index(["train_id"])
    file = Path(uri).expanduser()
    if "train_id" in table and file.is_file() and ".csv" in file.suffixes:
        # As text: the id 007 of a parquet table is not the number 7.
        at = table.columns.tolist().index("train_id")
        table["train_id"] = pd.read_csv(file, usecols=[at], dtype=str).iloc[:, 0]
    return table


def read_changes(reviewed: pd.DataFrame, training: TableRows, classes: Any, messages: list[str]) -> pd.DataFrame:
    """The rows whose label a review changes: position, train_id, label, new_label.

    Raises
    ------
    RequestError
        Columns, ids or labels that do not fit the training rows, or no change at all.
    """
    column = next((name for name in ("new_label", "suggested_label") if name in reviewed), None)
    if "train_id" not in reviewed or column is None:
        raise RequestError(
            f"suspects: need train_id and new_label (or suggested_label), got {some(reviewed.columns)}; "
            "review a copy of the audit's suspects.csv"
        )
    ids = reviewed["train_id"]
    if ids.duplicated().any():
        twice = ids[ids.duplicated()].unique().tolist()
        raise RequestError(f"suspects: train ids occur twice ({some(twice, 5)}); decide each row once")
    positions = matched(ids, training.row_ids)
    if unknown := [value for value, at in zip(ids, positions, strict=True) if at < 0]:
        raise RequestError(
            f"suspects: {len(unknown)} of {len(ids)} train ids are not among the training rows ({some(unknown, 5)}); "
            f"those are named {some(training.row_ids, 3)}; pass the --id-column the audit had"
        )
    old = np.asarray(training.y)[positions]
    if "label" in reviewed:
        known = np.asarray(classes)[_labels(reviewed["label"], classes, "label")]
        if (wrong := np.flatnonzero(known != old)).size:
            at = int(wrong[0])
            raise RequestError(
                f"suspects: {wrong.size} rows have another label than the training rows (train id {ids.iloc[at]}: "
                f"{known[at]} against {old[at]}); this is a review of other data or other row ids"
            )
    given = reviewed[column].notna().to_numpy() & _approved(reviewed)
    given &= reviewed[column].astype(str).str.strip().ne("").to_numpy()
    reviewed, positions, old = reviewed[given], positions[given], old[given]
    new = np.asarray(classes)[_labels(reviewed[column], classes, column)]
    differs = new != old
    if not differs.any():
        raise RequestError(
            f"suspects: none of the {len(ids)} rows changes a label; fill {column}, and where there is a column "
            "reviewed put yes in it"
        )
    if column == "suggested_label" and not {"reviewed", "keep"} & set(reviewed.columns):
        messages.append(
            "the suspects have no column new_label, reviewed or keep: every suggested label was taken as it stands"
        )
    return pd.DataFrame(
        {
            "position": positions[differs],
            "train_id": np.asarray(training.row_ids)[positions[differs]],
            "label": old[differs],
            "new_label": new[differs],
        }
    )


def corrected_labels(training: TableRows, changes: pd.DataFrame) -> Any:
    """All training labels with the changes applied, shape (n,).

    Raises
    ------
    RequestError
        A class would be left without rows.
    """
    labels = np.array(training.y, copy=True)
    labels[changes["position"].to_numpy()] = changes["new_label"].to_numpy()
    left, before = pd.unique(labels), pd.unique(np.asarray(training.y))
    if len(left) < 2:
        raise RequestError(
            f"suspects: after the {len(changes)} changes every row is {labels[0]}; two classes are needed, review them"
        )
    if len(left) < len(before):
        gone = [name for name in before if name not in left]
        raise RequestError(
            f"suspects: after the {len(changes)} changes no row is {some(gone, 3)}; the model could not be compared "
            "with one that knows every class, review them"
        )
    return labels


def _approved(reviewed: pd.DataFrame) -> Any:
    """Rows whose new label the reviewer lets through, bool."""
    approved = np.ones(len(reviewed), dtype=bool)
    for name, wanted in (("reviewed", True), ("keep", False)):
        if name not in reviewed:
            continue
        words = reviewed[name].astype(object).where(reviewed[name].notna(), "").map(_word)
        if odd := sorted(set(words) - _YES - _NO):
            raise RequestError(f"suspects: column {name} holds {some(odd, 5)}; write yes or no")
        approved &= words.isin(_YES).to_numpy() == wanted
    return approved


def _word(value: object) -> str:
    """A cell as csv readers vary it: 1, 1.0, True, ' Yes '."""
    return str(value).strip().lower().removesuffix(".0")


def _labels(values: pd.Series, classes: Any, column: str) -> Any:
    """Index into ``classes`` of each label."""
    at = matched(values, classes)
    if (at < 0).any():
        unknown = pd.unique(values[at < 0]).tolist()
        raise RequestError(
            f"suspects: {column} holds {some(unknown, 5)}; the model's classes are {some(classes)}, use those"
        )
    return at


def matched(values: pd.Series, known: Any) -> Any:
    """Position of each value in ``known``, by value, else by text (csv turns '7' into 7 or 7.0); -1 for none.

    Returns
    -------
    ndarray of shape (len(values),), int64
    """
    exact = {value: at for at, value in enumerate(known)}
    by_text = {str(value): at for at, value in enumerate(known)}

    def find(value: Any) -> int:
        found = exact.get(value, by_text.get(str(value).strip()))
        return by_text.get(str(value).strip().removesuffix(".0"), -1) if found is None else found

    return np.array([find(value) for value in values], dtype=np.int64)
