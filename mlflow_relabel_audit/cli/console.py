"""What a command puts on the terminal besides its results: errors, warnings, progress."""

from __future__ import annotations

import logging
import os
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
    bars = _Bars(stream)
    try:
        yield bars
    finally:
        bars.close()


class _Bars:
    """One click progress bar after the other, a new one when the stage changes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stage = ""
        self._bar: ProgressBar[Any] | None = None

    def __call__(self, done: int, total: int, stage: str) -> None:
        if self._bar is None or stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = click.progressbar(length=max(total, 1), label=stage, file=self._stream)
            self._bar.render_progress()
        self._bar.update(done - self._bar.pos)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None
