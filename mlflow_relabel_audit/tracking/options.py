"""What a caller says about a model's rows: where they are, and which of their columns are not features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from mlflow_relabel_audit.tracking.columns import Columns


class DataKeywords(TypedDict, total=False):
    """The keywords by which `audit`, `contest`, `relabel` and `gate` take `DataOptions`."""

    train_data: str | None
    target: str | None
    eval_data: str | None
    id_column: str | None
    weight_column: str | None
    groups: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where a model's rows come from.

    Parameters
    ----------
    train_data, eval_data : str, optional
        Parquet or csv: a path or any URI that MLflow downloads. By default the rows stored with the run, or
        those its dataset inputs point to; without evaluation rows a sample of the training rows is audited.
    target, id_column, weight_column : str, optional
        Columns of labels, of unique row names, of the weights given to fit.
    groups : sequence of str
        Columns of groups whose labels and errors to compare.
    """

    train_data: str | None = None
    target: str | None = None
    eval_data: str | None = None
    id_column: str | None = None
    weight_column: str | None = None
    groups: Sequence[str] = ()

    @property
    def columns(self) -> Columns:
        """The columns that are not features."""
        return Columns(self.target, self.id_column, self.weight_column, tuple(self.groups))
