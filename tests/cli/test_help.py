"""What ``--help`` shows: the options that most people want first, and nothing cut on a narrow terminal."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from kvload.cli.main import COMMANDS, load_command

SENDING = ("replay", "compare", "sweep", "capacity")


def leaves(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below this one with the words that call it, and this one."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from leaves((*words, name), inner)


ALL = [found for name in COMMANDS for found in leaves((name,), load_command(name))]


def shown(words: tuple[str, ...]) -> str:
    """``--help`` on a terminal of 80 columns."""
    script = "import sys; from kvload.cli.main import run; run(sys.argv[1:])"
    command = [sys.executable, "-c", script, *words, "--help"]
    env = {**os.environ, "COLUMNS": "80", "TERM": "dumb"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", [*SENDING, "launch", "report", "export", "mock", "logs"])
def test_no_option_is_cut_at_80_columns(name: str) -> None:
    text = shown((name,))
    assert "…" not in text
    assert not {"<bool>", "<str>", "<list[str]>", "<int>"} & set(text.split())
    assert max(map(len, text.splitlines())) <= 80
    words = text.replace("│", " ").replace(",", " ").split()
    assert {flag for parameter in load_command(name).params for flag in parameter.opts if flag[0] == "-"} <= set(words)


@pytest.mark.parametrize("name", SENDING)
def test_the_first_options_are_few(name: str) -> None:
    options = [parameter for parameter in load_command(name).params if parameter.param_type_name == "option"]
    first = [option for option in options if getattr(option, "rich_help_panel", None) in {None, "Options"}]
    assert len(options) > 2 * len(first)
    assert {"--slo", "--limit", "--mode", "--out", "--model"} <= {flag for option in first for flag in option.opts}


@pytest.mark.parametrize(("words", "command"), ALL, ids=[" ".join(words) for words, _ in ALL])
def test_every_option_says_what_it_does(words: tuple[str, ...], command: Any) -> None:
    del words
    assert all(parameter.help for parameter in command.params)


def test_a_python_without_kvloads_needs_is_named() -> None:
    bare = "import sys; sys.path = [path for path in sys.path if 'site-packages' not in path]"
    script = f"{bare}; from kvload.cli.main import run; sys.exit(run(['doctor']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: kvload needs 'typer', which {sys.executable} does not have")
    assert "make setup" in done.stderr
