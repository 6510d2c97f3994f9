"""What an audit's stages yield; one writer alone puts them into a store (see `write`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Metric:
    """One number, logged as ``relabel_audit/NAME``; left out where it is not finite."""

    name: str
    value: float


@dataclass(frozen=True)
class Artifact:
    """One finished local file and the path it gets below ``relabel_audit/``."""

    path: str
    file: Path


@dataclass(frozen=True)
class Tag:
    """One tag of the run, logged as ``relabel_audit.NAME``; ``verdict`` is written last of all."""

    name: str
    value: str


@dataclass(frozen=True)
class Note:
    """The block an audit keeps in the run's description, Markdown."""

    text: str


Output = Metric | Artifact | Tag | Note
