"""The registry's files, masking of secrets, sizes, and what is read of an environment."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from kvload.errors import UsageError
from kvload.records import ServerInfo
from kvload.servers.host.installed import find_python, look
from kvload.servers.lifecycle import registry
from kvload.servers.lifecycle.masking import mask_command, mask_env
from kvload.servers.lifecycle.process import session_members, start_mark
from kvload.servers.lifecycle.registry import ServerEntry


def entry_of(name: str, pid: int = 0, mark: str = "") -> ServerEntry:
    return ServerEntry(
        name=name,
        engine="embedded",
        host="127.0.0.1",
        port=1,
        url="http://127.0.0.1:1",
        token="t0ken",
        state="ready",
        info=ServerInfo(url="http://127.0.0.1:1"),
        log_path="/nowhere.log",
        exit_path="/nowhere.exit",
        launched_at=time.time(),
        pid=pid,
        mark=mark,
    )


def test_a_dead_entry_gives_way_a_living_one_does_not(state_folder: Path) -> None:
    registry.claim(entry_of("a", pid=os.getpid(), mark="not my start"))
    registry.claim(entry_of("a"))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        registry.save(entry_of("a", process.pid, start_mark(process.pid) or ""))
        with pytest.raises(UsageError, match="is there already"):
            registry.claim(entry_of("a"))
        assert registry.find("a").pid == process.pid
        process.communicate(b"\n")
    assert registry.state_of(entry_of("a", process.pid, "x")) == "dead"


def test_entries_are_the_users_own_and_show_no_token(state_folder: Path) -> None:
    registry.claim(entry_of("a"))
    assert stat.S_IMODE(registry.folder().stat().st_mode) == 0o700
    shown = registry.as_dict(entry_of("a"))
    assert "t0ken" not in json.dumps(shown)
    assert shown["state"] == "dead"
    assert shown["why"]["message"]


def test_nothing_launched_and_unknown_names(state_folder: Path) -> None:
    with pytest.raises(UsageError, match="no server is running"):
        registry.find()
    with pytest.raises(UsageError, match="there is no server 'x'"):
        registry.find("x")
    for name in ("", "../x", "a/b", ".x", "x" * 65):
        with pytest.raises(UsageError, match="cannot name a server"):
            registry.load(name)


@pytest.mark.parametrize("name", ["bad.json", "a b.json", "other.json"])
@pytest.mark.parametrize("text", ["{", "[" * 100_000, "{}", None])
def test_a_damaged_entry_is_named_and_stops_nobody_else(state_folder: Path, name: str, text: str | None) -> None:
    registry.claim(entry_of("good"))
    content = text if text is not None else msgspec.json.encode(entry_of("stranger")).decode()
    (registry.folder() / name).write_text(content, encoding="utf-8")
    assert [entry.name for entry in registry.entries()] == ["good"]
    (error,) = registry.damaged()
    assert name in str(error)
    (registry.folder() / name).unlink()


def test_a_living_servers_port_is_not_given_twice(state_folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        registry.claim(entry_of("a", process.pid, start_mark(process.pid) or ""))
        with pytest.raises(registry.PortHeldError, match="port 1 belongs to the server 'a'"):
            registry.claim(entry_of("b"))
        process.communicate(b"\n")
    registry.claim(entry_of("b"))


def test_claims_at_the_same_time_give_a_port_to_one(state_folder: Path) -> None:
    code = (
        "import os, sys, time, msgspec\n"
        "from kvload.errors import UsageError\n"
        "from kvload.servers.lifecycle import registry\n"
        "from kvload.servers.lifecycle.process import start_mark\n"
        "entry = msgspec.json.decode(sys.argv[1].encode(), type=registry.ServerEntry)\n"
        "entry = msgspec.structs.replace(entry, state='starting', launcher_pid=os.getpid(),"
        " launcher_mark=start_mark(os.getpid()))\n"
        "input()\n"
        "try:\n    registry.claim(entry); print('claimed', flush=True)\n"
        "except UsageError as error:\n    print(error.where, flush=True)\n"
        "input()\n"
    )
    texts = [msgspec.json.encode(entry_of(name)).decode() for name in "abc"]
    started = [
        subprocess.Popen([sys.executable, "-c", code, text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for text in texts
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.stdout.readline().strip() for process in started if process.stdout is not None]
    for process in started:
        process.communicate("\n")
    assert sorted(said) == ["--port", "--port", "claimed"]


def test_files_outside_the_state_folder_are_neither_read_nor_removed(state_folder: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("RuntimeError: my own affairs\n", encoding="utf-8")
    forged = msgspec.structs.replace(entry_of("forged"), log_path=str(precious), exit_path=str(precious))
    registry.claim(forged)
    assert "my own affairs" not in registry.why_dead(forged).message
    registry.remove(forged)
    assert precious.exists()
    assert registry.load("forged") is None


def test_a_forged_entry_ends_the_named_process_at_most_never_its_session(state_folder: Path) -> None:
    code = (
        "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'input()'])\nprint('up', flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        (child,) = psutil.Process(shell.pid).children()
        members = session_members([(child.pid, start_mark(child.pid) or "")], "t0ken")
        assert [process.pid for process in members] == [child.pid]
        shell.communicate(b"\n\n")


def test_secrets_are_masked() -> None:
    command = ["x", "--api-key", "one", "two", "--port", "1", "--hf-token=abc", "--token-limit", "5"]
    assert mask_command(command) == [
        "x",
        "--api-key",
        "***",
        "***",
        "--port",
        "1",
        "--hf-token=***",
        "--token-limit",
        "5",
    ]
    env = {"VLLM_API_KEY": "k", "HF_TOKEN": "h", "HF_HOME": "/h", "PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "s"}
    assert mask_env(env, without=["HF_HOME"]) == {"HF_TOKEN": "***", "VLLM_API_KEY": "***"}


def test_an_environments_packages_are_read_without_importing_them(tmp_path: Path) -> None:
    package = tmp_path / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (package / "_version.py").write_text("__version__ = version = '9.8.7'\n", encoding="utf-8")
    torch = tmp_path / "torch"
    torch.mkdir()
    (torch / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (torch / "version.py").write_text("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n", encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = look({"vllm": ("vllm-of-no-index",), "sglang_absent": ("x",)}, sys.executable, env)
    assert set(found) == {"vllm"}
    assert found["vllm"].version == "9.8.7"
    assert found["vllm"].release == (9, 8, 7)
    assert found["vllm"].cuda == "13.0"
    rocm = "__version__ = '2.9.1+rocm6.4'\ncuda: Optional[str] = None\nhip: Optional[str] = '6.4.43484-123eb5128'\n"
    (torch / "version.py").write_text(rocm, encoding="utf-8")
    assert look({"vllm": ("vllm-of-no-index",)}, sys.executable, env)["vllm"].cuda == "ROCm 6.4.43484"
    (torch / "version.py").write_text("__version__ = '2.11.0+cpu'\ncuda: Optional[str] = None\n", encoding="utf-8")
    assert look({"vllm": ("vllm-of-no-index",)}, sys.executable, env)["vllm"].cuda is None
    assert not found["vllm"].has_plain_metadata


def test_pythons_are_found_by_path_folder_or_name(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    assert find_python(str(tmp_path)) == str(tmp_path / "bin" / "python")
    assert find_python(None) == sys.executable
    assert Path(find_python("python3")).exists()
    with pytest.raises(UsageError, match="no Python at"):
        find_python("/no/such/python")
    not_python = tmp_path / "python"
    not_python.write_text("#!/bin/sh\necho no; exit 1\n", encoding="utf-8")
    not_python.chmod(0o755)
    with pytest.raises(UsageError, match="does not run"):
        look({"vllm": ("vllm",)}, str(not_python), dict(os.environ))
