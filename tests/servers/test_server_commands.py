"""launch, status, logs, stop and doctor as their users meet them: exit codes, output, words."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from kvload.cli.main import run
from kvload.servers.lifecycle import registry


@pytest.fixture
def launch_args(state_folder: Path, fake_engine: object, model_folder: Path) -> list[str]:
    return ["launch", str(model_folder), "--engine", "fake"]


def test_launch_status_logs_stop(launch_args: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*launch_args, "--name", "one", "--", "--children", "1"]) == 0
    out, err = capfd.readouterr()
    assert out == "one\n"
    assert "loading weights" in err
    assert "one is ready on http://127.0.0.1:" in err
    assert "4,096 tokens of KV cache" in err

    assert run(["status"]) == 0
    out, _ = capfd.readouterr()
    assert "one" in out
    assert "ready" in out

    assert run(["status", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert [(row["name"], row["state"]) for row in shown] == [("one", "ready")]
    assert "token" not in shown[0]

    assert run(["logs", "one"]) == 0
    assert "STEP loading weights" in capfd.readouterr().out

    assert run(["stop"]) == 0
    assert "one stopped" in capfd.readouterr().err
    assert registry.entries() == []
    assert run(["logs", "one"]) == 0
    assert run(["stop"]) == 0


def test_a_dead_server_is_shown_with_why(launch_args: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*launch_args, "--name", "one"]) == 0
    os.kill(registry.find("one").pid, signal.SIGKILL)
    while registry.state_of(registry.entries()[0]) != "dead":
        time.sleep(0.02)
    capfd.readouterr()
    assert run(["status"]) == 0
    assert "one died: the process was killed (SIGKILL)" in capfd.readouterr().out
    assert run(["stop", "one"]) == 0
    assert "cleared away (it was dead)" in capfd.readouterr().err


def test_a_failed_launch_exits_with_3_the_cause_and_the_end_of_the_log(
    launch_args: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "crash.txt"
    log.write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n", encoding="utf-8")
    assert run([*launch_args, "--", "--crash", str(log)]) == 3
    err = capfd.readouterr().err
    assert "out of GPU memory" in err
    assert "lower --gpu-memory-utilization" in err
    assert "    torch.OutOfMemoryError" in err
    assert "Traceback (most recent call last)" not in err
    assert registry.entries() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "trtllm"], "no engine 'trtllm'"),
        (["--engine", "embedded", "--method", "nonsense"], "the embedded engine has no method 'nonsense'"),
        (["--engine", "embedded", "--method", "raw:fp8"], "the embedded engine has no method 'raw:fp8'"),
        (["--engine", "vllm", "--python", "/no/python"], "no Python at '/no/python'"),
        (["--engine", "vllm"], "vllm is not installed in this Python environment"),
        (["--kv-memory", "much"], "'much' is not a size"),
        (["--load-format", "x"], "neither auto nor dummy"),
        (["--env", "novalue"], "not NAME=VALUE"),
        (["--name", "../x", "--engine", "fake"], "cannot name a server"),
        (["--host", "203.0.113.7", "--engine", "fake"], "cannot listen on 203.0.113.7"),
    ],
)
def test_what_cannot_be_launched_exits_with_2(
    arguments: list[str],
    words: str,
    model_folder: Path,
    state_folder: Path,
    fake_engine: object,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(["launch", str(model_folder), *arguments]) == 2
    assert words in capfd.readouterr().err
    assert registry.entries() == []


def test_a_model_that_is_none_and_a_port_that_is_taken(
    launch_args: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["launch", "/no/model", "--engine", "fake"]) == 2
    assert "there is no model folder" in capfd.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run([*launch_args, "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen" in capfd.readouterr().err


def test_auto_says_what_it_took_and_why(
    state_folder: Path, model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Without weights the embedded engine cannot start: the choice is told before that.
    assert run(["launch", str(model_folder)]) == 3
    assert "engine embedded: " in capfd.readouterr().err


def test_several_servers_must_be_named(launch_args: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(launch_args) == 0
    assert run(launch_args) == 0
    assert run(["stop"]) == 2
    assert "fake-none, fake-none-2, or --all" in capfd.readouterr().err
    assert run(["stop", "absent"]) == 2
    assert run(["stop", "--all"]) == 0
    assert registry.entries() == []


def test_doctor(state_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    found = {row["what"]: row for row in json.loads(capfd.readouterr().out)}
    assert found["engine embedded"]["state"] == "ok"
    assert {"processor", "memory", "torch", "locust", "open files", "kernel receive timestamps"} <= set(found)
    assert run(["doctor", "--python", "/no/python"]) == 0
    assert "no Python at" in capfd.readouterr().out
