"""Lets MLflow's datasets name rows that are artifacts, so that a run's logged input can be read again.

``mlflow.data.from_pandas(frame, source="runs:/RUN_ID/data/train.parquet")`` is an error in MLflow itself. MLflow loads
this module, an entry point of the group ``mlflow.dataset_source``, whenever it is imported; so it imports nothing else.
"""

from __future__ import annotations

import re
from typing import Any

from mlflow.data.dataset_source import DatasetSource

_URI = re.compile(r"(?:runs|mlflow-artifacts):/.+")


class ArtifactDatasetSource(DatasetSource):
    """Rows in a file or folder that is an artifact: ``runs:/RUN_ID/PATH`` or ``mlflow-artifacts:/PATH``."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    @property
    def uri(self) -> str:
        """Where the rows are, as MLflow downloads them."""
        return self._uri

    def load(self, dst_path: str | None = None) -> str:
        """Download the rows and give the path they are at."""
        from mlflow.artifacts import download_artifacts

        return str(download_artifacts(artifact_uri=self._uri, dst_path=dst_path))

    def to_dict(self) -> dict[Any, Any]:
        """What is stored with the run."""
        return {"uri": self._uri}

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> ArtifactDatasetSource:
        """The inverse of `to_dict`."""
        return cls(str(source_dict["uri"]))

    @staticmethod
    def _get_source_type() -> str:
        return "mlflow_artifact"

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return isinstance(raw_source, str) and _URI.fullmatch(raw_source) is not None

    @classmethod
    def _resolve(cls, raw_source: Any) -> ArtifactDatasetSource:
        return cls(raw_source)
