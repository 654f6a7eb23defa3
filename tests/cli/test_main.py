"""The command dispatch: help, unknown commands, exit codes, no traceback for the user's mistakes."""

import importlib
import re
import signal
import subprocess
import sys

import pytest

from kvload.cli.main import COMMANDS, run


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"^  {name}\b", printed, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_module_and_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module(f"kvload.cli.{name}").app is not None
    assert run([name, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


def test_an_unknown_command_is_a_usage_error_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["repaly"]) == 2
    assert "did you mean 'replay'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["replay", "sample:demo", "--mode", "slow"], "error: --mode: 'slow' is not one of"),
        (["replay", "sample:demo", "--limit", "0"], "error: --limit: "),
        (["launch", "--port", "99999"], "error: --port: "),
        (["quality"], "error: missing argument"),
        (["traces", "foo"], "error: no such command 'foo'"),
        (["traces", "convert"], "error: missing argument"),
        (["slo", "foo"], "error: got unexpected extra argument"),
        (["replay", "no/such/trace"], "error: no/such/trace: there is no such file"),
        (["replay", "demo"], "error: demo: there is no such file"),
        (["compare", ".", "--method", "none"], "error: --method, --arm: '.' is a folder"),
    ],
)
def test_what_the_parser_refuses_is_said_as_kvload_says_it(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(told)
    assert "Usage:" not in said
    assert said.count("\n") == 1 or re.search(rf"kvload {words[0]}|sample:demo|give a trace", said.splitlines()[-1])


def test_an_unknown_flag_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--nonsense"]) == 2
    assert "--nonsense" in capsys.readouterr().err


def test_an_interrupt_ends_what_a_script_started_in_the_background() -> None:
    """There SIGINT is ignored from the start, which children inherit."""
    code = (
        "import time; from kvload.cli import main;"
        "main._dispatch = lambda _: print('up', flush=True) or time.sleep(60); main.main([])"
    )
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, restore_signals=False)
    finally:
        signal.signal(signal.SIGINT, former)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_a_users_mistake_gets_a_message_and_no_traceback() -> None:
    command = [sys.executable, "-m", "kvload", "report", "no/such/run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no/such/run: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["traces", "describe", "sample:demo", "--format", "share-gpt"], "did you mean sharegpt?"),
        (["traces", "sample", "--probe", "--tasks", "recal,list"], "did you mean recall?"),
        (["schema", "reprot"], "did you mean report?"),
        (["launch", "--method", "kivi4"], "did you mean kivi-4?"),
    ],
)
def test_what_is_nearly_right_gets_a_suggestion(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert meant in capsys.readouterr().err
