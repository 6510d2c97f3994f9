"""The README does what it says: its Python runs, its commands exist, its two lines are two lines."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from mlflow_relabel_audit.cli import COMMANDS, main

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def command_lines() -> list[list[str]]:
    """The words after each ``mlflow-relabel`` in the shell blocks, continuation lines joined."""
    found = []
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||;", line):
                words = shlex.split(part, comments=True)
                if words and Path(words[0]).name == "mlflow-relabel":
                    found.append(words[1:])
    return found


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[0][:40])
def test_python_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_commands_and_options_exist(words):
    name, *arguments = words
    command = main.get_command(click.Context(main), name)
    assert command is not None, f"no command {name}"
    command.make_context(name, arguments)


def test_every_command_is_shown():
    assert {words[0] for words in command_lines()} == set(COMMANDS)


def test_two_lines_do_all_their_own_setup():
    first, second = (block.strip() for block in blocks("bash")[:2])
    for line in (first, second):
        assert "\n" not in line
        assert line.startswith("python3 -m venv ")
    assert first.endswith("mlflow-relabel demo")
    assert second.endswith("-m tests")


def test_links_to_files_hold():
    root = Path(__file__).resolve().parents[1]
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (root / target).exists(), target
