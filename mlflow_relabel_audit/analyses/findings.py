"""Findings: what an analysis concludes, in coded sentences that reports and gates can rely on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["info", "warning", "critical"]


@dataclass(frozen=True)
class Finding:
    """One conclusion.

    Attributes
    ----------
    code : str
        a letter for the analysis and three digits, stable over versions: N001 (noise), B001 (bias).
    level : {"info", "warning", "critical"}
    message : str
        one sentence with the figures it rests on.
    applicable : bool
        False where the question could not be asked of this data; the message then says why.
    """

    code: str
    level: Level
    message: str
    applicable: bool = True
