"""Each example runs as it stands, in an empty directory, without a warning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
SAID = {
    "contest_one_decision": "no set of fewer than",
    "embeddings": "the most fragile of the sure ones",
    "several_classes": "labels to change so that it becomes",
    "table_with_groups": "[critical] region south",
    "text_pipeline": "of the 30 wrong ones",
}
"""What an example is about, beside the median k, in words of its own output."""


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, example],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert "median k" in done.stdout
    assert SAID.get(example.stem, "") in done.stdout
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


def test_every_example_that_is_named_is_there():
    assert set(SAID) <= {example.stem for example in EXAMPLES}
