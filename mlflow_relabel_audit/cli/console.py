"""What a command puts on the terminal besides its results: errors, warnings, progress."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

Progress = Callable[[int, int, str], None]
"""``progress(done, total, stage)``, as the analyses call it."""
ROOM = 44
"""Columns of a line that are not the bar's: the stage, percent, time left, a pass."""
SHOW_CURSOR = "" if os.name == "nt" else "\033[?25h"
"""What click, which hides it while a bar is drawn, writes with a bar's last newline."""


def say_error(error: Exception) -> None:
    """One line on the error stream, whatever the message holds."""
    click.echo(f"Error: {' '.join(str(error).split())}", err=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings as single lines, once each; what MLflow and its database migrations only inform of left out.

    Set ``MLFLOW_LOGGING_LEVEL`` to read their lines.
    """
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # MLflow asks for git where there may be none
    seen: set[str] = set()

    def show(message: Warning | str, category: type[Warning], filename: str, *_: object, **__: object) -> None:
        line = " ".join(str(message).split())
        # FutureWarning and its like, and what MLflow says of its own modules, speak to whoever writes code.
        ours = issubclass(category, UserWarning) and not _of_mlflow(filename)
        if ours and line not in seen:
            seen.add(line)
            click.echo(f"Warning: {line}", err=True)

    informed = "MLFLOW_LOGGING_LEVEL" in os.environ
    with warnings.catch_warnings():
        warnings.showwarning = show
        # By level for all loggers at once: some MLflow versions set their loggers anew at every migration.
        before = logging.root.manager.disable
        logging.disable(before if informed else max(before, logging.INFO))
        try:
            yield
        finally:
            logging.disable(before)


def _of_mlflow(filename: str) -> bool:
    package = sys.modules.get("mlflow")
    return package is not None and Path(filename).is_relative_to(Path(str(package.__file__)).parent)


@contextmanager
def progress_bar(stream: TextIO | None = None) -> Iterator[Progress | None]:
    """A bar for each stage on a terminal; None, which means no progress calls at all, elsewhere."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield None
        return
    from mlflow_relabel_audit.rows.progress import PASS  # here, so that --help needs no numbers

    bars = _Bars(stream, passing=PASS)
    try:
        yield bars
    finally:
        bars.close()


class _Bars:
    """One click progress bar after the other, a new one when the stage changes.

    Passes over the rows come by the hundred: one is shown while it lasts, at the end of the line of a stage that is
    not done, else as a bar that is wiped away.
    """

    def __init__(self, stream: TextIO, passing: str) -> None:
        self._stream, self._passing = stream, passing
        self._stage = ""
        self._bar: ProgressBar[Any] | None = None

    def __call__(self, done: int, total: int, stage: str) -> None:
        passing, over = stage == self._passing, done >= total
        if self._bar is not None and passing and self._stage != stage and not self._bar.finished:
            self._bar.current_item = None if over else f"{stage} {100 * done // total}%"
            self._bar.render_progress()
            return
        if self._bar is None or stage != self._stage:
            self.close()
            self._stage, self._bar = stage, self._begin(total, stage)
        self._bar.current_item = None
        self._bar.update(done - self._bar.pos)
        if passing and over:
            self.close()

    def _begin(self, total: int, stage: str) -> ProgressBar[Any]:
        width = min(36, shutil.get_terminal_size().columns - ROOM)
        bar: ProgressBar[Any] = click.progressbar(
            length=max(total, 1), label=stage, file=self._stream, width=max(width, 8), item_show_func=_beside
        )
        bar.render_progress()
        return bar

    def close(self) -> None:
        """End the line of the bar that is shown; of a pass nothing is left."""
        if self._bar is None:
            return
        if self._stage == self._passing:
            self._stream.write(f"\r{' ' * (self._bar.max_width or 0)}\r{SHOW_CURSOR}")
            self._stream.flush()
        else:
            self._bar.render_finish()
        self._bar = None


def _beside(item: str | None) -> str | None:
    return item
