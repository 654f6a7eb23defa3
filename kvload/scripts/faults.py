"""``make faults``: what becomes of a run when its server, its processes, its disk or its user fail.

Every fault is made to happen to a real ``kvload replay`` against the mock server, with one and with three workers, and
every planned request must be accounted for afterwards: with a record of its own, in a folder that can be read, under a
manifest that says how the run ended (but where the process that writes it was killed itself). Prints one line a fault,
and exits with 70 if a request was lost, a process was left behind, or a run claimed to be complete that was not.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from kvload.errors import ExitStatus, RunDirError
from kvload.rundir import RunDir
from kvload.workloads.mock.behaviour import BEHAVIOURS, MockSettings
from kvload.workloads.mock.process import MockProcess

PATIENCE_S = 180.0
_SLOW = MockSettings(ttft_s=0.02, itl_s=0.005)
Replay = subprocess.Popen[str]


@dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
        part: ``server``, ``client``, ``process`` or ``disk``.
        disturb: does it, once some requests have their records; given the replay and the mock server.
        prompts: what the requests ask; one kind after the other.
        requests, tokens, gap_s: of the trace.
        more: further options of ``kvload replay``.
        wrap: what the command is run under, given the folder that the run folder will lie in.
        exits: exit statuses that are right.
        completes: the run may say that it is complete.
        finished: the manifest is finished.
    """

    part: str
    name: str
    exits: frozenset[int]
    disturb: Callable[[Replay, MockProcess], None] = lambda _replay, _mock: None
    prompts: tuple[str, ...] = ("p",)
    requests: int = 120
    tokens: int = 40
    gap_s: float = 0.03
    more: tuple[str, ...] = ()
    wrap: Callable[[Path], list[str]] = lambda _folder: []
    completes: bool = False
    finished: bool = True


@dataclass(frozen=True)
class Row:
    """What came of it."""

    case: Case
    workers: int
    exit: int
    planned: int
    statuses: Counter[str]
    ended: str
    left: int
    wrong: tuple[str, ...]


def locusts(replay: Replay) -> list[psutil.Process]:
    """The Locust processes of a replay: the master first, then its workers."""
    with contextlib.suppress(psutil.Error):
        found = [one for one in psutil.Process(replay.pid).children(recursive=True) if "locust" in one.cmdline()]
        return sorted(found, key=lambda one: "--worker" in one.cmdline())
    return []


def _signal_replay(*numbers: int) -> Callable[[Replay, MockProcess], None]:
    def disturb(replay: Replay, _mock: MockProcess) -> None:
        for number in numbers:
            replay.send_signal(number)
            time.sleep(0.1)

    return disturb


def _signal_locust(number: int, *, workers: bool, every: bool = False) -> Callable[[Replay, MockProcess], None]:
    def disturb(replay: Replay, _mock: MockProcess) -> None:
        found = locusts(replay)
        # with one worker the master is the worker
        chosen = [one for one in found if "--worker" in one.cmdline()] if workers and len(found) > 1 else found[:1]
        for one in chosen if every else chosen[:1]:
            one.send_signal(number)

    return disturb


def _hang_and_interrupt(replay: Replay, mock: MockProcess) -> None:
    _signal_locust(signal.SIGSTOP, workers=False)(replay, mock)
    replay.send_signal(signal.SIGINT)


def _end_server(_replay: Replay, mock: MockProcess) -> None:
    mock.process.kill()


def _small_disk(folder: Path) -> list[str]:
    """A disk of its own of little more than a megabyte, whose files are kept when it goes."""
    script = (
        'mount -t tmpfs -o size=1200k none "$1"; keep="$2"; shift 2; "$@"; code=$?; cp -r "$0"/. "$keep"; exit $code'
    )
    return ["unshare", "--mount", "sh", "-c", script, str(folder), str(folder), str(folder) + ".kept"]


def _few_files(_folder: Path) -> list[str]:
    return ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh"]


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "disk.kept").mkdir()
        (Path(folder) / "disk").mkdir()
        command = [*_small_disk(Path(folder) / "disk"), "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def cases() -> list[Case]:
    """All faults, in the order they are tried."""
    ok, server, machine = (frozenset({int(s)}) for s in (ExitStatus.OK, ExitStatus.SERVER, ExitStatus.MACHINE))
    interrupted, killed = frozenset({int(ExitStatus.INTERRUPTED)}), frozenset({-int(signal.SIGKILL)})
    usage = frozenset({int(ExitStatus.USAGE)})
    quick = frozenset(BEHAVIOURS) - {"runaway"}
    return [
        Case(
            *("server", f"{len(quick)} kinds of answers"),
            server,
            prompts=tuple(f"fault:{name}" for name in sorted(quick)),
            requests=2 * len(quick),
            tokens=8,
            gap_s=0.005,
            more=("--timeout", "3s"),
            completes=True,
        ),
        Case("server", "the same, allowed", ok, prompts=tuple(f"fault:{n}" for n in sorted(quick)), tokens=8,
             requests=len(quick), gap_s=0.005, more=("--timeout", "3s", "--allow-failures", "100%"), completes=True),
        Case("server", "an answer without an end", ok, prompts=("p",) * 49 + ("fault:runaway",), requests=50, tokens=8,
             completes=True),
        Case("server", "dies", server, _end_server),
        Case("client", "a header that cannot be sent", usage, more=("--header", "Connection: close")),
        Case("client", "64 files", machine, requests=300, gap_s=0.0, wrap=_few_files),
        Case("process", "a worker is killed", machine, _signal_locust(signal.SIGKILL, workers=True)),
        Case("process", "all workers are killed", machine, _signal_locust(signal.SIGKILL, workers=True, every=True)),
        Case("process", "the master is killed", machine, _signal_locust(signal.SIGKILL, workers=False)),
        Case("process", "the master hangs, Ctrl-C", interrupted, _hang_and_interrupt, more=("--drain", "100ms")),
        Case("process", "Ctrl-C", interrupted, _signal_replay(signal.SIGINT)),
        Case("process", "Ctrl-C twice", interrupted, _signal_replay(signal.SIGINT, signal.SIGINT)),
        Case("process", "SIGTERM", interrupted, _signal_replay(signal.SIGTERM)),
        Case("process", "SIGHUP", interrupted, _signal_replay(signal.SIGHUP)),
        Case("process", "replay is killed", killed, _signal_replay(signal.SIGKILL), finished=False),
        Case("disk", "full", machine, requests=400, tokens=400, gap_s=0.01, wrap=_small_disk),
    ]  # fmt: skip


def try_out(case: Case, workers: int, folder: Path) -> Row:
    """Make one fault happen and account for every request."""
    trace = folder / "trace.jsonl"
    lines = [
        {"id": f"r{n}", "arrival": n * case.gap_s, "prompt": f"{case.prompts[n % len(case.prompts)]} {n}"}
        for n in range(case.requests)
    ]
    trace.write_text("".join(json.dumps({**line, "max_tokens": case.tokens}) + "\n" for line in lines))
    disk = folder / "disk"
    disk.mkdir()
    (folder / "disk.kept").mkdir()
    with MockProcess(_SLOW) as mock:
        command = [sys.executable, "-m", "kvload", "replay", str(trace), "--url", mock.url, "--out", str(disk / "run")]
        command += ["--workers", str(workers), "-q", "--no-calibrate", *case.more]
        quiet = subprocess.DEVNULL
        said = folder / "stderr"
        with said.open("w") as errors:
            replay = subprocess.Popen([*case.wrap(disk), *command], stdout=quiet, stderr=errors, text=True)
        seen = _until_some_records(replay, disk / "run")
        case.disturb(replay, mock)
        wrong = []
        try:
            replay.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            wrong.append("it hung")
            replay.kill()
            replay.wait()
        _, alive = psutil.wait_procs(seen, timeout=20)
    run = (folder / "disk.kept" if case.wrap(disk)[:1] == ["unshare"] else disk) / "run"
    statuses, ended, more = _account(case, run)
    wrong += more
    if replay.returncode not in case.exits:
        last = said.read_text(errors="replace").strip().splitlines()[-2:]
        wrong.append(f"exit {replay.returncode} ({' / '.join(last)})")
    if alive:
        wrong.append(f"{len(alive)} processes left")
    return Row(case, workers, replay.returncode, case.requests, statuses, ended, len(alive), tuple(wrong))


def _until_some_records(replay: Replay, run: Path) -> list[psutil.Process]:
    """Wait until some requests have ended; returns the Locust processes seen until then."""
    deadline = time.monotonic() + 60
    seen: dict[int, psutil.Process] = {}
    while replay.poll() is None and time.monotonic() < deadline:
        seen |= {one.pid: one for one in locusts(replay)}
        if sum(path.read_bytes().count(b"\n") for path in run.glob("records/*.jsonl")) >= 5:
            break
        time.sleep(0.05)
    return list(seen.values())


def _account(case: Case, path: Path) -> tuple[Counter[str], str, list[str]]:
    """How the requests ended, how the run says it did, and what is wrong with that."""
    if case.exits == {int(ExitStatus.USAGE)}:
        return Counter(), "never begun", ["a run folder"] if path.exists() else []
    try:
        run = RunDir.open(path)
        manifest = run.manifest()
        records = [record for record, _ in run.records()]
    except RunDirError as error:
        return Counter(), "", [f"unreadable: {error}"]
    statuses: Counter[str] = Counter(record.status for record in records)
    wrong = []
    if len({record.index for record in records}) != len(records):
        wrong.append("doubled records")
    if case.finished and len(records) != case.requests:
        wrong.append(f"{case.requests - len(records)} lost")
    if case.finished and manifest.ended is None:
        wrong.append("no end in the manifest")
    if not case.completes and not manifest.partial:
        wrong.append("claims to be complete")
    if case.finished and (manifest.sent or 0) + (manifest.unsent or 0) != case.requests:
        wrong.append("the manifest's counts do not add up")
    return statuses, manifest.ended or "(replay itself was killed)", wrong


def main() -> int:
    """Try every fault and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="Only faults whose part or name holds this.")
    parser.add_argument("--workers", default="1,3", help="Numbers of workers to try.")
    options = parser.parse_args()
    # under nohup the replays would ignore it as they should, and the fault would not happen
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    chosen = [case for case in cases() if options.only in f"{case.part} {case.name}"]
    can_mount = _can_mount()
    print(f"{'part':<8} {'fault':<30} {'workers':>7} {'exit':>4} {'planned':>7}  accounted as", flush=True)
    planned = accounted = bad = 0
    for case in chosen:
        if case.wrap is _small_disk and not can_mount:
            print(f"{case.part:<8} {case.name:<30} not tried: needs the right to mount")
            continue
        for workers in map(int, options.workers.split(",")):
            with tempfile.TemporaryDirectory(prefix="kvload-faults-") as folder:
                row = try_out(case, workers, Path(folder))
            told = ", ".join(f"{number} {status}" for status, number in row.statuses.most_common())
            wrong = f"  WRONG: {', '.join(row.wrong)}" if row.wrong else ""
            head = f"{case.part:<8} {case.name:<30} {workers:>7} {row.exit:>4} {row.planned:>7}"
            print(f"{head}  {told or '-'}; {row.ended}{wrong}", flush=True)
            if row.statuses and case.finished:
                planned += row.planned
                accounted += sum(row.statuses.values())
            bad += bool(row.wrong)
    print(f"{accounted:,} of {planned:,} requests accounted for; {bad} of these lines are wrong")
    return ExitStatus.FAULT if bad else ExitStatus.OK


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
