"""Servers on a real Ray cluster: three nodes on this machine, their GPU counts made up, on loopback addresses.

A comparison and a sweep go over it: a node is lost in mid-run, the driver is killed, and resuming finishes both.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kvload.cli.main import run
from kvload.errors import UsageError
from kvload.rundir import RunDir
from kvload.servers.lifecycle import registry

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'kvload[ray]'")
pytestmark = pytest.mark.slow

SMALL = {"num_cpus": 4, "object_store_memory": 80 << 20}
HEAD = {"node_ip_address": "127.0.0.2"}
NODE_NUMBERS = itertools.count(3)
ENGINE = ["--engine", "embedded", "--kv-memory", "64MiB", "--no-verify", "--no-calibrate", "--warmups", "1"]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """kvload's state folder, which all nodes of this machine share."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVLOAD_STATE_DIR", str(folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


@pytest.fixture(scope="module")
def head(state: Path) -> Iterator[Any]:
    """A cluster whose head has no GPU."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**SMALL, "num_gpus": 0, "include_dashboard": False} | HEAD)
    yield made
    made.shutdown()


@pytest.fixture
def cluster(head: Any) -> tuple[Any, list[Any]]:
    """The cluster, and its three nodes with a GPU each; those that a former test lost are replaced."""
    nodes = list(head.worker_nodes)
    while len(nodes) < 3:
        nodes.append(head.add_node(num_gpus=1, node_ip_address=f"127.0.0.{next(NODE_NUMBERS)}", **SMALL))
    return head, nodes


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    rows = [{"id": f"r{i}", "arrival": 0.3 * i, "input_length": 30, "output_length": 6} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


Begin = Callable[[list[str], Path], "subprocess.Popen[bytes]"]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Starts ``kvload`` with its output in a file; ends what a test leaves behind."""
    started: list[subprocess.Popen[bytes]] = []

    def start(words: list[str], log: Path) -> "subprocess.Popen[bytes]":
        with log.open("wb") as file, log.with_suffix(".stdout").open("wb") as results:
            command = [sys.executable, "-m", "kvload", *words]
            started.append(subprocess.Popen(command, stdout=results, stderr=file))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def await_that(condition: Callable[[], bool], what: str, patience_s: float = 150.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def servers() -> list[str]:
    """Addresses of the engines that run on the cluster's nodes."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[1:4] == ["-u", "-m", "kvload.servers.embedded"] and "--host" in words:
            found.append(words[words.index("--host") + 1])
    return [address for address in found if re.fullmatch(r"127\.0\.0\.\d+", address) and address != "127.0.0.1"]


def sending(out: Path, folder: str) -> bool:
    """Whether a run has records of answers by now."""
    return any(path.stat().st_size for path in (out / "runs" / folder / "records").glob("*.jsonl"))


@pytest.mark.timeout(900)
def test_a_comparison_over_three_nodes_survives_a_lost_node_and_a_killed_driver(
    cluster: tuple[Any, list[Any]], begin: Begin, trace: Path, tmp_path: Path
) -> None:
    made, nodes = cluster
    out, log = tmp_path / "experiment", tmp_path / "log"
    place = ["--place", "ray", "--address", made.address]
    methods = ["--method", "none", "--method", "int8", "--method", "int4", "--repeats", "1", "--no-alone"]
    driver = begin(["compare", str(trace), *methods, *ENGINE, *place, "--out", str(out)], log)
    await_that(lambda: sending(out, "r0-int8"), "the second arm never sent anything")
    address = RunDir.open(out / "runs" / "r0-int8").manifest().server.node
    lost = next(node for node in nodes if address == f"node {node.node_ip_address}")
    made.remove_node(lost, allow_graceful=False)
    assert driver.wait(300) == 3
    said = log.read_text(errors="replace")
    assert "the arm 'int8' failed" in said
    partial = RunDir.open(out / "runs" / "r0-int8").manifest()
    assert partial.partial
    assert (partial.sent or 0) + (partial.unsent or 0) == 40
    complete = {path.name for path in (out / "runs").iterdir() if not RunDir.open(path).manifest().partial}
    assert complete == {"r0-none", "r0-none-again", "r0-int4"}
    used = {RunDir.open(out / "runs" / name).manifest().server.node for name in complete}
    assert len(used) >= 2
    assert servers() == []

    # the driver is killed in mid-run: nothing stays behind, and what was complete stays complete
    driver = begin(["compare", "--resume", str(out), "--no-verify", *place], log)
    aside = out / "runs" / "r0-int8.unfinished-1"
    await_that(lambda: aside.exists() and sending(out, "r0-int8"), "the resumed arm never sent anything")
    assert len(servers()) == 1
    driver.send_signal(signal.SIGKILL)
    driver.wait(30)
    await_that(lambda: not servers(), "a server outlived its driver", 60.0)

    driver = begin(["compare", "--resume", str(out), "--no-verify", *place], log)
    assert driver.wait(300) == 0, log.read_text(errors="replace")
    assert (out / "comparison.html").is_file()
    assert json.loads((out / "comparison.json").read_text())["comparisons"]
    for name in ("r0-none", "r0-none-again", "r0-int8", "r0-int4"):
        manifest = RunDir.open(out / "runs" / name).manifest()
        assert not manifest.partial
        assert manifest.server.gpus == ["0"]
        assert manifest.client["remote_workers"] == 1  # on a node that is not the server's
        (note,) = [note for note in manifest.notes if "clock" in note]
        assert abs(float(re.findall(r"[+-][\d.]+ ms", note)[0].split()[0])) < 1000
    assert servers() == []


@pytest.mark.timeout(900)
def test_a_sweep_over_three_nodes_survives_a_lost_node_and_a_killed_driver(
    cluster: tuple[Any, list[Any]], begin: Begin, trace: Path, tmp_path: Path
) -> None:
    made, nodes = cluster
    out, log = tmp_path / "sweep", tmp_path / "log"
    place = ["--place", "ray", "--address", made.address]
    loads = ["--rates", "2,4", "--duration", "18s", "--warm-up", "0s", "--slo", "ttft=20s", "--target", "0.5"]
    methods = ["--method", "none", "--method", "int8", "--method", "int4"]
    driver = begin(["sweep", str(trace), *methods, *loads, *ENGINE, *place, "--json", "--out", str(out)], log)
    await_that(lambda: sending(out, "int8-at-2-r0"), "the second arm never sent anything")
    lost = RunDir.open(out / "runs" / "int8-at-2-r0").manifest().server.node
    made.remove_node(next(n for n in nodes if lost == f"node {n.node_ip_address}"), allow_graceful=False)
    assert driver.wait(300) == 3
    assert "int8 failed, the others go on" in log.read_text(errors="replace")
    found = json.loads(log.with_suffix(".stdout").read_text())  # Ray's own complaints are no part of it
    assert {curve["arm"]: len(curve["levels"]) for curve in found["curves"]} == {"none": 2, "int8": 0, "int4": 2}
    assert RunDir.open(out / "runs" / "int8-at-2-r0").manifest().partial
    assert servers() == []

    driver = begin(["sweep", "--resume", str(out), *place], log)
    aside = out / "runs" / "int8-at-2-r0.unfinished-1"
    await_that(lambda: aside.exists() and sending(out, "int8-at-2-r0"), "the resumed arm never sent anything")
    driver.send_signal(signal.SIGKILL)
    driver.wait(30)
    await_that(lambda: not servers(), "a server outlived its driver", 60.0)

    driver = begin(["sweep", "--resume", str(out), *place, "--json"], log)
    assert driver.wait(300) == 0, log.read_text(errors="replace")
    found = json.loads(log.with_suffix(".stdout").read_text())
    assert {curve["arm"]: len(curve["levels"]) for curve in found["curves"]} == {"none": 2, "int8": 2, "int4": 2}
    for arm in ("none", "int8", "int4"):
        manifest = RunDir.open(out / "runs" / f"{arm}-at-4-r0").manifest()
        assert manifest.server.gpus == ["0"]
        assert manifest.client["remote_workers"] == 1
    assert servers() == []


@pytest.mark.timeout(900)
def test_replicas_on_a_cluster_are_replayed_against_shown_and_stopped_by_name(
    cluster: tuple[Any, list[Any]], begin: Begin, trace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made, nodes = cluster
    log = tmp_path / "log"
    place = ["--place", "ray", "--address", made.address]
    engine = ["--engine", "embedded", "--kv-memory", "64MiB"]
    holder = begin(["launch", *engine, *place, "--replicas", "2", "--name", "fleet"], log)
    await_that(lambda: bool(log.with_suffix(".stdout").read_text()), "the replicas never came up")
    entries = [registry.load(f"fleet.{number}") for number in range(2)]
    assert len({entry.info.node for entry in entries if entry is not None}) == 2
    too_many = begin(["launch", *engine, *place, "--replicas", "9"], tmp_path / "many")
    assert too_many.wait(60) == 2
    assert "the cluster has room for 3 of 9 servers" in (tmp_path / "many").read_text()
    for policy in ("round-robin", "sticky", "least-loaded"):
        out = tmp_path / policy
        words = ["--policy", policy, "--warmups", "1", "--no-calibrate", "--limit", "8", "--out", str(out)]
        assert run(["replay", str(trace), "--server", "fleet", *words]) == 0
        manifest = RunDir.open(out).manifest()
        assert [server.name for server in manifest.servers] == ["fleet.0", "fleet.1"]
        assert not manifest.gpus  # this machine's meters say nothing of theirs
        lines = [json.loads(line) for line in (out / "scrapes.jsonl").read_text().splitlines()]
        assert {line.get("server", 0) for line in lines} == {0, 1}
        (note,) = [note for note in manifest.notes if "clock" in note]
        assert all(str(server.node) in note for server in manifest.servers)
        assert all((out / name).is_file() for name in ("server.log", "server-1.log"))
        if policy != "sticky":
            rows = [
                json.loads(line) for path in (out / "records").glob("*.jsonl") for line in path.read_text().splitlines()
            ]
            # idle servers take turns under least-loaded as well
            assert sorted(row.get("server", 0) for row in rows) == [0] * 4 + [1] * 4
    capfd.readouterr()
    assert run(["logs", "fleet.1"]) == 0
    assert "ready on" in capfd.readouterr().out
    assert run(["stop", "fleet"]) == 0
    assert holder.wait(60) == 0
    assert registry.members("fleet") == []
    assert servers() == []

    # one node is lost: the command ends, and with it what else it held
    holder = begin(["launch", *engine, *place, "--replicas", "2", "--name", "fleet"], log)
    await_that(lambda: bool(log.with_suffix(".stdout").read_text()), "the replicas never came up again")
    entry = registry.load("fleet.1")
    assert entry is not None
    made.remove_node(next(n for n in nodes if entry.info.node == f"node {n.node_ip_address}"), allow_graceful=False)
    assert holder.wait(120) == 3
    assert "the server 'fleet.1' died" in log.read_text(errors="replace")
    assert registry.members("fleet") == []
    await_that(lambda: not servers(), "a server outlived its command", 60.0)


def test_where_no_cluster_listens_that_is_told(state: Path) -> None:
    del state
    from kvload.servers.launcher import place_of

    assert not ray.is_initialized()
    with pytest.raises(UsageError, match="no Ray cluster answers"):
        place_of("ray", "127.0.0.2:9")
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
