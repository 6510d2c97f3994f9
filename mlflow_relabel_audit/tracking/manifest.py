"""manifest.json: an audit's files with their SHA-256, written last, so that it names a whole audit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mlflow_relabel_audit.tracking.outputs import Artifact

NAME = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """One audit's files.

    Parameters
    ----------
    audit_id : str
        Unique to one execution of the audit.
    fingerprint : str
        SHA-256 (hex) of model, data and package version: the key of the stored Hessian.
    created : str
        ISO 8601, UTC.
    generation : int
        One more than that of the audit it replaced; of two audits the higher one is the newer.
    artifacts : mapping
        Path below ``relabel_audit/`` to ``{"sha256": hex, "bytes": size}``.
    facts : mapping
        What was audited: run, model, data, package version.
    """

    audit_id: str
    fingerprint: str
    created: str
    artifacts: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    generation: int = 1

    def to_json(self) -> str:
        """Indented JSON with sorted keys, the same bytes for the same content."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest | None:
        """Parse a manifest; None for anything that is not one."""
        try:
            raw = json.loads(text)
            if raw["format"] != _FORMAT:
                return None
            return cls(**{each.name: raw[each.name] for each in fields(cls)})
        except (ValueError, KeyError, TypeError):
            return None

    def with_artifacts(self, artifacts: Mapping[str, Mapping[str, Any]]) -> Manifest:
        """The same audit with another list of files."""
        return replace(self, artifacts=artifacts)

    def matches(self, path: str, file: Path) -> bool:
        """Whether ``file`` holds exactly what the manifest lists under ``path``."""
        entry = self.artifacts.get(path)
        return entry is not None and file.is_file() and sha256(file) == entry["sha256"]


def sha256(file: Path) -> str:
    """SHA-256 of a file, hex, read in blocks."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def listing(artifacts: Iterable[Artifact]) -> dict[str, dict[str, Any]]:
    """The ``artifacts`` entry of a manifest."""
    return {item.path: {"sha256": sha256(item.file), "bytes": item.file.stat().st_size} for item in artifacts}
