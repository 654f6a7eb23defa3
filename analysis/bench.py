"""How fast runs are reported and arms are compared: ``python -m kvload.analysis.bench``.

Makes a run of a million records with 200 chunks each, and 20 arms of 10,000 requests, in a temporary folder, and
measures each task in a process of its own: seconds, CPU seconds (what is left on a busy machine) and peak memory,
that of helping processes included.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kvload.records import RequestRecord, RunManifest, ServerInfo, TraceInfo
from kvload.rundir import CHUNK_DTYPE, RunDir

_LIMITS = {"ttft": 0.15, "tpot": 0.012, "e2e": 3.0}
_BLOCK = 2000


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--arms", type=int, default=20)
    parser.add_argument("--requests", type=int, default=10_000, help="in each arm")
    parser.add_argument("--folder", type=Path, default=None, help="where to make the runs (1.6 GB); a temporary one")
    parser.add_argument("--task", choices=["report", "compare"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        _run_task(options.task, options.folder)
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="kvload-bench-") as name:
        folder = Path(name)
        _say(f"making {options.records:,} records with {options.chunks} chunks, and {options.arms} arms")
        make_run(folder / "run", options.records, options.chunks, seed=0, shards=4)
        for arm in range(options.arms):
            grow = 1.0 + 0.02 * max(arm - 1, 0)
            make_run(folder / f"arm-{arm:02}", options.requests, options.chunks, seed=1 + arm, shards=2, grow=grow)
        _say(f"{'task':<44}{'seconds':>9}{'CPU s':>9}{'peak MiB':>10}")
        for task, text in (
            ("report", f"report of {options.records:,} x {options.chunks} chunks"),
            ("compare", f"comparison of {options.arms} arms x {options.requests:,} requests"),
        ):
            seconds, cpu_s, peak_mib = _measure(task, folder)
            _say(f"{text:<44}{seconds:>9.2f}{cpu_s:>9.2f}{peak_mib:>10.0f}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _measure(task: str, folder: Path) -> tuple[float, float, float]:
    command = [sys.executable, "-m", "kvload.analysis.bench", "--task", task, "--folder", str(folder)]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    cpu_s, peak_mib = map(float, done.stdout.split()[-2:])
    return time.perf_counter() - start, cpu_s, peak_mib


def _run_task(task: str, folder: Path) -> None:
    from rich.console import Console

    with Path(os.devnull).open("w", encoding="utf-8") as sink:
        console = Console(file=sink, width=120)
        if task == "report":
            from kvload.analysis.report import terminal
            from kvload.analysis.run.summary import summarise

            terminal.render(summarise(RunDir.open(folder / "run")), console)
        else:
            from kvload.analysis.comparison.compare import compare
            from kvload.analysis.records.pairs import ArmRuns
            from kvload.analysis.report import compare_terminal, html_compare

            runs = sorted(folder.glob("arm-*"))
            arms = [ArmRuns(r.name, (RunDir.open(r),), baseline=i == 0, floor=i == 1) for i, r in enumerate(runs)]
            comparison = compare(arms)
            compare_terminal.render(comparison, console)
            sink.write(html_compare.render(comparison))
    own, helpers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = sum(used.ru_utime + used.ru_stime for used in (own, helpers))
    # No more than this at any moment: all helpers at the size of the largest.
    peak_kib = own.ru_maxrss + helpers.ru_maxrss * len(os.sched_getaffinity(0))
    _say(f"{cpu_s} {peak_kib / 1024}")


def make_run(path: Path, records: int, chunks: int, *, seed: int, shards: int, grow: float = 1.0) -> None:
    """Write a run folder of answered requests.

    Args:
        path: the folder to make.
        records: how many requests.
        chunks: about how many token chunks each has; lengths vary by a quarter of it.
        seed: of times and lengths; prompts do not depend on it.
        shards: files to spread them over.
        grow: factor on the lengths.
    """
    rng = np.random.default_rng(seed)
    typical = np.random.default_rng(12345)
    run = RunDir.create(path, _manifest(records))
    writers = [run.writer(f"worker-{number}") for number in range(shards)]
    for first in range(0, records, _BLOCK):
        count = min(_BLOCK, records - first)
        lengths = np.maximum(np.round(typical.normal(chunks, chunks / 4, count) * grow).astype(int), 1)
        sends = (first + np.arange(count)) * 0.01 + rng.uniform(0, 0.0005, count)
        firsts = np.round(rng.gamma(4, 0.02, count) * 1e6).astype(np.int64)
        gaps = rng.gamma(8, 1250.0, int(lengths.sum())).astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        gaps[starts] = firsts
        times = np.cumsum(gaps)
        times -= np.repeat(times[starts] - firsts, lengths)
        rows = np.empty(len(times), CHUNK_DTYPE)
        rows["us"], rows["tokens"] = times, 1
        for place in range(count):
            mine = rows[starts[place] : starts[place] + lengths[place]]
            record = _record(first + place, float(sends[place]), mine)
            writers[(first + place) % shards].append(record, mine)
    for writer in writers:
        writer.close()


def _manifest(records: int) -> RunManifest:
    return RunManifest(
        run_id="bench",
        kvload_version="0",
        servers=[ServerInfo(url="http://127.0.0.1:1")],
        trace=TraceInfo(path="bench.jsonl", sha256="0" * 64, format="kvload", rows=records, used=records),
        mode="free",
        seed=0,
        arrivals={"kind": "constant", "rate": 100.0},
        planned=records,
        slo=_LIMITS,
        partial=False,
    )


def _record(index: int, send_s: float, rows: "np.typing.NDArray[np.void]") -> RequestRecord:
    first_s, last_s = float(rows["us"][0]) / 1e6, float(rows["us"][-1]) / 1e6
    return RequestRecord(
        index=index,
        request_id=f"request-{index}",
        prompt_digest=f"{index:032x}",
        max_tokens=4096,
        t_sched_s=index * 0.01,
        status="ok",
        input_tokens=500,
        prompt_tokens=500,
        t_send_s=send_s,
        t_headers_s=send_s + first_s / 2,
        t_first_s=send_s + first_s,
        t_last_s=send_s + last_s,
        t_end_s=send_s + last_s + 0.0001,
        output_tokens=len(rows),
        output_tokens_source="usage",
        first_chunk_tokens=1,
        finish_reason="stop",
        http_status=200,
        clock="kernel",
        text="an answer of some words " * 5,
    )


if __name__ == "__main__":
    main()
