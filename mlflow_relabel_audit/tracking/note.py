"""The block an audit keeps in a run's description, between markers; the user's own text stays as it is."""

from __future__ import annotations

import re

KEY = "mlflow.note.content"
START, END = "<!-- relabel_audit:start -->", "<!-- relabel_audit:end -->"
_LIMIT = 8000
_BLOCK = re.compile(r"\n*" + re.escape(START) + r".*?" + re.escape(END), re.DOTALL)


def merge(description: str, block: str) -> str | None:
    """The description with its block replaced, or added at the end.

    Returns
    -------
    str or None
        None where it would pass MLflow's limit of 8000 characters, at which it cuts without a word.
    """
    own = _BLOCK.sub("", description)
    text = f"{START}\n{block.strip()}\n{END}"
    merged = f"{own.rstrip()}\n\n{text}" if own.strip() else text
    return merged if len(merged) <= _LIMIT else None
