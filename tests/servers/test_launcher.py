"""The launcher against a real process: start, failure, interruption, death, stop."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from kvload.errors import ServerError, UsageError
from kvload.servers.launcher import LaunchEvent, reset_prefix_cache
from kvload.servers.lifecycle import registry
from kvload.servers.lifecycle.ports import free_port
from kvload.servers.lifecycle.process import is_alive, session_members, start_mark
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.lifecycle.starting import StartFailedError
from kvload.servers.lifecycle.stopping import stop
from tests.servers.conftest import Starter


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def living(pids: list[int]) -> list[int]:
    return [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


def members(entry: ServerEntry) -> list[int]:
    return [process.pid for process in session_members(entry.anchors, entry.token)]


def test_launch_waits_for_a_token_and_tells_what_it_waits_for(start: Starter) -> None:
    events: list[LaunchEvent] = []
    entry = start(events=events)
    assert registry.state_of(entry) == "ready"
    assert entry.info.pool_tokens == 4096
    assert entry.info.max_model_len == 512
    assert entry.info.prefix_cache == "off"
    assert entry.vocab_size == 1000
    assert "loading weights" in [event.text for event in events]
    assert events[-1].kind == "ready"
    assert registry.find() == registry.find("fake-none") == entry


def test_the_server_is_detached_from_its_launcher(start: Starter) -> None:
    entry = start()
    assert os.getsid(entry.pid) not in {os.getsid(0), entry.pid}
    assert os.getsid(entry.pid) == entry.keeper_pid
    assert psutil.Process(entry.keeper_pid).ppid() != os.getpid()


def test_stop_ends_the_whole_family_even_those_that_left_the_session(start: Starter) -> None:
    entry = start("--children", "4")
    family = members(entry)
    assert len(family) == 6
    report = stop(entry)
    assert report.was_running
    assert not report.killed
    assert living(family) == []
    assert registry.load(entry.name) is None


def test_stop_kills_what_does_not_end_by_itself(start: Starter) -> None:
    entry = start("--children", "2", "--stubborn")
    family = members(entry)
    report = stop(entry)
    assert report.killed
    assert living(family) == []


def test_a_server_that_is_killed_is_reported_as_dead_with_why(start: Starter) -> None:
    entry = start("--children", "1")
    family = members(entry)
    os.kill(entry.pid, signal.SIGKILL)
    assert wait_for(lambda: registry.state_of(entry) == "dead")
    assert wait_for(lambda: living(family) == [])
    assert "SIGKILL" in registry.why_dead(entry).message
    with pytest.raises(ServerError, match="died: the process was killed"):
        registry.find()
    assert not stop(entry).was_running


def test_a_stranger_with_the_same_pid_is_never_touched(start: Starter) -> None:
    entry = start()
    stop(entry)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        forged = ServerEntry(
            **{
                **{field: getattr(entry, field) for field in entry.__struct_fields__},
                "pid": stranger.pid,
                "keeper_pid": stranger.pid,
            }
        )
        assert registry.state_of(forged) == "dead"
        assert not stop(forged).was_running
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_failed_start_names_the_cause_and_leaves_nothing(start: Starter, tmp_path: Path) -> None:
    log = tmp_path / "crash.txt"
    log.write_text(
        "Traceback ...\nOSError: /no/model does not appear to have a file named config.json\n", encoding="utf-8"
    )
    with pytest.raises(StartFailedError, match="the model was not found") as caught:
        start("--crash", str(log))
    assert caught.value.exit_status == 3
    assert caught.value.cause.kind == "model"
    assert "does not appear to have a file" in caught.value.log_end
    assert registry.entries() == []


def test_a_start_that_takes_too_long_is_ended(start: Starter) -> None:
    before = {p.pid for p in psutil.process_iter()}
    with pytest.raises(StartFailedError, match="not ready after 1 s; it was at: loading weights"):
        start("--sick", timeout_s=1.0)
    assert registry.entries() == []
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if p.pid not in before and "--sick" in (p.info["cmdline"] or [])
    ]


def test_healthy_without_a_token_is_not_ready(start: Starter) -> None:
    with pytest.raises(StartFailedError, match="produced no token"):
        start("--mute")
    assert registry.entries() == []


def test_death_at_the_first_request_is_told_from_the_log(start: Starter) -> None:
    with pytest.raises(
        StartFailedError, match="ended at its first request: ValueError: the first request was too much"
    ):
        start("--die-at-first-request")


class _InterruptAtFirstEvent(list[LaunchEvent]):
    def append(self, event: LaunchEvent) -> None:
        if not self:
            os.kill(os.getpid(), signal.SIGINT)
        super().append(event)


def _nothing_is_left(state: Path) -> bool:
    ours = [p.pid for p in psutil.process_iter() if p.pid != os.getpid() and _mentions(p, str(state))]
    return registry.entries() == [] and ours == []


def test_an_interrupt_stops_the_half_started_server(start: Starter, state_folder: Path) -> None:
    events = _InterruptAtFirstEvent()
    with pytest.raises(KeyboardInterrupt):
        start("--sick", "--children", "1", events=events)
    assert [event.text for event in events] == ["waiting for the process"]
    assert _nothing_is_left(state_folder)


def test_an_interrupt_while_the_keeper_starts_leaves_no_server_that_no_entry_names(
    start: Starter, state_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = subprocess.run

    def run(*args: Any, **kwargs: Any) -> Any:
        answer = really(*args, **kwargs)
        if "keeper.py" in str(args):
            os.kill(os.getpid(), signal.SIGINT)
        return answer

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(KeyboardInterrupt):
        start()
    assert _nothing_is_left(state_folder)


def _mentions(process: psutil.Process, text: str) -> bool:
    try:
        return process.environ().get("KVLOAD_STATE_DIR") == text
    except psutil.Error:
        return False


def test_several_servers_by_name(start: Starter) -> None:
    first, second = start(name="one"), start(name="two")
    assert first.port != second.port
    with pytest.raises(UsageError, match="several servers are running") as caught:
        registry.find()
    assert "one, two" in str(caught.value)
    assert registry.find("two").pid == second.pid
    with pytest.raises(UsageError, match="'one' is there already"):
        start(name="one")
    assert registry.state_of(first) == "ready"


def test_names_without_a_wish_are_numbered_and_dead_ones_give_way(start: Starter) -> None:
    first, second = start(), start()
    assert (first.name, second.name) == ("fake-none", "fake-none-2")
    os.kill(first.pid, signal.SIGKILL)
    assert wait_for(lambda: registry.state_of(first) == "dead")
    assert start().name == "fake-none"


def test_another_server_on_the_port_is_not_taken_for_the_one_started(start: Starter) -> None:
    port = free_port("127.0.0.1")
    command = [
        sys.executable,
        str(Path(__file__).with_name("fake_engine.py")),
        "--port",
        str(port),
        "--bind-after",
        "0.4",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as stranger:
        try:
            with pytest.raises(StartFailedError, match="another process answers on port"):
                start("--bind-after", "30", name="late", port=port)
        finally:
            stranger.terminate()
    assert registry.load("late") is None


def test_of_three_launches_on_one_port_one_lives_and_two_say_so(start: Starter) -> None:
    port = free_port("127.0.0.1")

    def launch_one(number: int) -> str:
        try:
            return str(start("--bind-after", "0.5", name=f"s{number}", port=port).name)
        except UsageError as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        said = list(pool.map(launch_one, range(3)))
    assert len([text for text in said if re.fullmatch(r"s\d", text)]) == 1
    assert len([text for text in said if f"port {port} belongs to the server" in text]) == 2
    assert len([entry for entry in registry.entries() if registry.state_of(entry) == "ready"]) == 1


def test_a_taken_port_is_refused_before_anything_starts(start: Starter) -> None:
    entry = start()
    with pytest.raises(UsageError, match="cannot listen"):
        start(name="other", port=entry.port)
    assert [known.name for known in registry.entries()] == ["fake-none"]
    assert free_port("127.0.0.1") != entry.port


def test_secrets_are_neither_stored_nor_needed_to_stop(start: Starter, state_folder: Path) -> None:
    entry = start("--api-key", "sesame-8421", env={"HF_TOKEN": "hf_sesame-8421", "HF_HOME": "/x"})
    assert registry.state_of(entry) == "ready"
    stored = b"".join(path.read_bytes() for path in state_folder.rglob("*") if path.is_file())
    assert b"sesame-8421" not in stored
    assert entry.info.env is not None
    assert entry.info.env["HF_TOKEN"] == "***"
    assert entry.info.env["HF_HOME"] == "/x"
    assert entry.info.command is not None
    assert entry.info.command[-1] == "***"


def test_what_an_engine_prints_of_its_keys_is_masked_in_messages(start: Starter, tmp_path: Path) -> None:
    crash = tmp_path / "crash.txt"
    crash.write_text("ValueError: cannot use key sesame-8421 at https://me:sesame-9000@hub", encoding="utf-8")
    options = ("--chatty", "--api-key", "sesame-8421", "--crash", str(crash))
    with pytest.raises(StartFailedError) as caught:
        start(*options, env={"HF_TOKEN": "sesame-7777"})
    assert "sesame" not in f"{caught.value} {caught.value.log_end} {caught.value.hint}"
    assert "cannot use key ***" in str(caught.value)


def test_no_prefix_cache_needs_no_reset(start: Starter) -> None:
    assert reset_prefix_cache(start()) == "off"


def test_start_marks_stay_the_same_and_end_with_the_process() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        mark = start_mark(process.pid)
        assert mark is not None
        assert start_mark(process.pid) == mark
        assert is_alive(process.pid, mark)
        assert not is_alive(process.pid, mark + "0")
        process.communicate(b"\n")
    assert start_mark(process.pid) != mark
    assert not is_alive(process.pid, mark)


def test_a_launch_that_was_killed_is_told_and_can_be_cleared(start: Starter, state_folder: Path) -> None:
    entry = start()
    registry.save(msgspec.structs.replace(entry, state="starting", launcher_pid=1, launcher_mark="not its start"))
    with pytest.raises(ServerError, match="was killed before the server was ready"):
        registry.find()
    assert stop(registry.entries()[0]).was_running
    assert living([entry.pid, entry.keeper_pid]) == []
