"""The command dispatch: help, unknown commands, exit codes, no traceback for the user's mistakes."""

import importlib
import re
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


def test_an_unknown_flag_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--nonsense"]) == 2
    assert "--nonsense" in capsys.readouterr().err


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
