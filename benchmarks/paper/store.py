"""Results on disk: one JSON file for each set, experiment, penalty and seed, so that a run can be taken up again."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, order=True)
class Key:
    """What a result belongs to; ``penalty`` is ``"paper"`` or ``"tuned"``."""

    set: str
    experiment: str
    penalty: str = "paper"
    seed: int = 0

    @property
    def file(self) -> str:
        return f"{self.experiment}-{self.penalty}-{self.seed}.json"


class Store:
    """A folder of results.

    A result is taken for done where its settings (sizes, penalty, threshold) are those asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: Key) -> Path:
        return self.folder / key.set / key.file

    def read(self, key: Key, settings: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Result of a key, None where there is none or it is of other settings."""
        try:
            held = json.loads(self.path(key).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        fits = settings is None or held["settings"] == _plain(settings)
        return held["result"] if fits else None

    def settings(self, key: Key) -> dict[str, Any]:
        """Settings of a result that is held."""
        return json.loads(self.path(key).read_text(encoding="utf-8"))["settings"]

    def write(self, key: Key, settings: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        """Keep a result, whole or not at all, and return it as it will be read."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        held = _plain({"key": vars(key), "settings": settings, "result": result})
        part = path.with_suffix(".part")
        part.write_text(json.dumps(held, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)
        return held["result"]

    def every(self, experiment: str) -> list[tuple[Key, dict[str, Any]]]:
        """All results of an experiment, by set, penalty and seed."""
        found = []
        for path in sorted(self.folder.glob(f"*/{experiment}-*-*.json")):
            held = json.loads(path.read_text(encoding="utf-8"))
            if held["key"]["experiment"] == experiment:
                found.append((Key(**held["key"]), held["result"]))
        return found


def _plain(value: Any) -> Any:
    """The value in JSON's own types; a number that is not finite is null."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
