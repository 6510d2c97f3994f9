"""What a user sees on a terminal while a command works, and once it is interrupted."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlflow_relabel_audit.cli.console import progress_bar
from mlflow_relabel_audit.rows.progress import PASS

TRAIN = """
import mlflow, numpy as np, pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

def slow(X):
    import time
    time.sleep(0.6 if len(X) > 9_000 else 0.0)
    return X

rng = np.random.default_rng(0)
X = pd.DataFrame({name: rng.integers(0, 5, 100_000) for name in "ab"})
y = (X["a"] + rng.logistic(size=len(X)) > 2).astype(int)
model = make_pipeline(FunctionTransformer(slow), OneHotEncoder(), LogisticRegression(tol=1e-8)).fit(X, y)
X.assign(label=y).to_parquet("train.parquet", row_group_size=10_000)
X.assign(label=y)[:50].to_parquet("test.parquet")
with mlflow.start_run() as run:
    mlflow.sklearn.log_model(model, name="model", serialization_format="cloudpickle")
print(run.info.run_id)
"""
LEFT = ("MLFLOW_RUN", "MLFLOW_EXPERIMENT")
"""What MLflow leaves in the environment for processes that this one starts, of another store's tests."""
COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
from mlflow_relabel_audit.cli import main
main()
"""


def shown(text: str) -> list[str]:
    """The lines that are left on a terminal after a text with carriage returns."""
    lines = []
    for line in re.sub(r"\x1b\[\?25[lh]", "", text).replace("\r\n", "\n").split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal: the user's, the program's."""
    user, program = pty.openpty()
    try:
        yield user, program
    finally:
        os.close(user)
        os.close(program)


def read(user: int, seconds: float) -> str:
    """What came within some seconds; "" where nothing did."""
    return os.read(user, 1 << 16).decode() if select.select([user], [], [], seconds)[0] else ""


def draw(*calls: tuple[int, int, str]) -> str:
    """All that bars write for these calls."""
    with terminal() as (user, program), os.fdopen(os.dup(program), "w") as stream:
        with progress_bar(stream) as progress:
            assert progress is not None
            for call in calls:
                progress(*call)
        stream.write("the end")
        stream.flush()
        text = ""
        while not text.endswith("the end"):
            more = read(user, 20)
            assert more, text
            text += more
    return text


def test_a_pass_is_shown_on_the_line_of_the_stage_it_is_part_of() -> None:
    text = draw(
        (0, 9, "flip sets"), (3, 9, "flip sets"), (1, 4, PASS), (3, 4, PASS), (4, 4, PASS), (1, 4, PASS),
        (6, 9, "flip sets"), (9, 9, "flip sets"),
    )  # fmt: skip
    drawn = [" ".join(part.split()) for part in text.split("\r")]
    assert any(re.search(r"^flip sets .* 33%.* rows 25%$", re.sub(r"\x1b\[\?25l", "", part)) for part in drawn)
    assert "rows 75%" in text
    assert "rows 100%" not in text
    *before, last, end = shown(text)
    assert not before
    assert re.fullmatch(r"flip sets  \[#+\]  100%", last)
    assert end == "the end"
    assert all(len(part.strip()) < 80 for part in re.sub(r"\x1b\[\?25[lh]", "", text).split("\r"))


def test_of_passes_alone_nothing_is_left() -> None:
    calls = [(done, 4, PASS) for _ in range(3) for done in (1, 2, 4)]
    text = draw((0, 2, "reading rows"), (2, 2, "reading rows"), *calls, (1, 4, PASS))
    assert re.search(r"\rrows  \[#+-+\]   50%", re.sub(r"\x1b\[\?25l", "", text))
    first, last = shown(text)
    assert re.fullmatch(r"reading rows  \[#+\]  100%", first)
    assert last == "the end"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize("columns", ["60", "200"])
def test_a_line_fits_the_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = draw((0, 9, "flip sets"), (3, 9, "flip sets"), (1, 4, PASS), (9, 9, "flip sets"))
    assert max(len(part) for part in re.sub(r"\x1b\[\?25[lh]", "", text).split("\r")) < min(int(columns), 80)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
@pytest.mark.parametrize("where", ["cluster", "disk"])
def test_rows_are_read_before_ones_eyes_and_an_interrupt_leaves_nothing(where: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LEFT)}
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "COLUMNS": "80"}
    trained = subprocess.run(
        [sys.executable, "-c", TRAIN], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    words = ["audit", "--run-id", trained.stdout.split()[-1], "--train-data"]
    words += [str(tmp_path / "train.parquet"), "--target", "label"]
    words += ["--eval-data", "test.parquet", "--output-dir", "out", "--no-log"]
    with scheduler() if where == "cluster" else no_scheduler() as cluster, terminal() as (user, program):
        words += ["--memory-limit", "256MiB"] if cluster is None else ["--dask", cluster.scheduler_address]
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words],
            cwd=tmp_path, env=environment, stdin=program, stdout=program, stderr=program, start_new_session=True,
        )  # fmt: skip
        text, sent = "", False
        try:
            while process.poll() is None or select.select([user], [], [], 0)[0]:
                text += read(user, 1.0)
                if not sent and re.search(r"reading rows  \[#+-+\]   [1-9]\d%", text):
                    process.send_signal(signal.SIGINT)
                    sent = True
        finally:
            process.kill()
            process.wait()
        assert sent, text
        assert process.returncode == 130, text
        assert re.search(r"reading rows  \[-+\]    0%", text)
        lines = shown(text)
        assert lines[0].startswith("Tracking URI  sqlite:///")
        assert lines[1].startswith("reading rows  [#")
        assert lines[2:] == ["", "Interrupted; nothing more is written.", ""], text
        assert not (tmp_path / "out").exists()
        if cluster is not None:
            nothing_runs(cluster)


@contextmanager
def scheduler() -> Iterator[Any]:
    """A scheduler with two worker processes."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs="CRITICAL"
    ) as cluster:
        yield cluster


@contextmanager
def no_scheduler() -> Iterator[None]:
    yield None


def nothing_runs(cluster: Any) -> None:
    """Wait until the scheduler knows no task and no worker runs one."""
    with cluster.get_client() as client:
        for _ in range(200):
            running = [*cluster.scheduler.tasks, *(key for keys in client.run(_running).values() for key in keys)]
            if not running:
                return
            time.sleep(0.05)
    raise AssertionError(running)


def _running(dask_worker: Any) -> list[str]:
    return [str(key) for key in dask_worker.active_threads.values()]
