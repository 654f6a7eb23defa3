"""What a machine can do at all: bare readers that send and read like the client and do nothing else.

One is written in C and compiled on the spot where there is a compiler, one in Python. Both are fed by the mock server
at the client's own load, so that its cost can be read as a multiple of theirs.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvload.workloads.calibration.calibrate import Load, Meter, lateness_s, mock_processes, request_body
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.process import MockProcess
from kvload.workloads.mock.truth import read_truth

SOURCE = Path(__file__).with_name("floor.c")
_NAP_US = 1000
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Floor:
    """What a bare reader cost at one load.

    Attributes:
        cpu_us_per_chunk: its processor time in microseconds per chunk.
        cpu_share: of a core.
        shared_reads: share of chunks that came in one read with another.
        mock_cpu_share, mock_late_p99_s, machine_cpu_share: see ``Calibration``.
    """

    reader: str
    rate: float
    cpu_us_per_chunk: float
    cpu_share: float
    shared_reads: float
    worst_lag_s: float
    mock_cpu_share: float | None
    mock_late_p99_s: float
    machine_cpu_share: float | None


@contextmanager
def readers() -> Iterator[Mapping[str, list[str]]]:
    """The commands of the bare readers that this machine can run, by name."""
    found = {"bare Python": [sys.executable, "-m", "kvload.workloads.bench.reader"]}
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    with tempfile.TemporaryDirectory(prefix="kvload-bench-") as folder:
        program = Path(folder) / "bench_floor"
        if compiler is not None:
            made = subprocess.run([compiler, "-O2", "-o", str(program), str(SOURCE)], capture_output=True, check=False)
            if made.returncode == 0:
                found = {"bare C": [str(program)], **found}
        yield found


def measure(reader: str, command: list[str], load: Load) -> Floor | None:
    """Put a bare reader under a load; None where it did not come to the end of it."""
    with tempfile.TemporaryDirectory(prefix="kvload-bench-") as folder:
        truth_path = Path(folder) / "truth.jsonl"
        settings = MockSettings(ttft_s=load.ttft_s, itl_s=load.itl_s)
        with MockProcess(settings, truth_path, mock_processes(load, 1)) as mock:
            meter = Meter(mock)
            port = mock.url.rpartition(":")[2]
            words = [*command, port, str(load.rate), str(load.requests), str(_NAP_US)]
            meter.start()
            try:
                done = subprocess.run(
                    words, input=request_body(load), capture_output=True, timeout=_PATIENCE_S, check=True
                )
            except subprocess.SubprocessError:
                return None
            meter.end()
        found = json.loads(done.stdout)
        late_s = lateness_s(read_truth(truth_path), load)
    chunks = load.requests * load.tokens
    return Floor(
        reader=reader,
        rate=load.rate,
        cpu_us_per_chunk=found["cpu_s"] / chunks * 1e6,
        cpu_share=found["cpu_s"] / found["wall_s"],
        shared_reads=max(0.0, 1 - found["reads"] / chunks),
        worst_lag_s=found["worst_lag_s"],
        mock_cpu_share=meter.mock_share,
        mock_late_p99_s=float(np.quantile(late_s, 0.99)),
        machine_cpu_share=meter.machine_share,
    )
