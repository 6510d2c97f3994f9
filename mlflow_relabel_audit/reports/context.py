"""What every report says about the model and the data it is about."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

CLASSES_SHOWN = 12
"""Classes that a page names; of more the number is given."""


@dataclass(frozen=True)
class ReportContext:
    """The facts a page states beside its figures.

    Parameters
    ----------
    model_name : str
        The name a reader knows the model by: its registered name, or the logged model's.
    model_uri : str
        Where the model was loaded from, for example ``models:/m-0a1b`` or ``models:/loan/3``.
    model_version, run_id, tracking_uri : str or None
        Registered version, the run the model came from, and the server, already free of credentials.
    train_source, eval_source : str
        The data in words: a path, a URI, a data set's name.
    n_train, n_eval, n_features : int
        Training rows N, evaluated rows T, and columns of the design matrix (without the intercept).
    threshold : float
        A row of two classes is predicted positive where its probability is above this.
    class_names : tuple of str
        As in the training labels; of two, the negative one first.
    package_version, generated_at : str
        The version that made the page, and when, already formatted.
    messages : tuple of str
        Notes for the reader: warnings met on the way, what was left out and why.
    include_rows : bool
        Whether pages may show the rows themselves. Without it the frames below are ignored.
    train_rows, eval_rows : pandas.DataFrame or None
        Raw rows in the order, and under the ids, of the analyses' frames.
    """

    model_name: str
    model_uri: str
    train_source: str
    eval_source: str
    n_train: int
    n_eval: int
    n_features: int
    threshold: float
    class_names: tuple[str, ...]
    package_version: str
    generated_at: str
    model_version: str | None = None
    run_id: str | None = None
    tracking_uri: str | None = None
    messages: tuple[str, ...] = ()
    include_rows: bool = False
    train_rows: pd.DataFrame | None = field(default=None, repr=False, compare=False)
    eval_rows: pd.DataFrame | None = field(default=None, repr=False, compare=False)

    @property
    def several(self) -> bool:
        """Whether there are more than two classes: the most probable one is predicted, whatever the threshold."""
        return len(self.class_names) > 2
