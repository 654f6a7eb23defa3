"""What describing a large trace costs: ``python -m kvload.workloads.bench.traces --rows 1000000 8000000``.

For every size a file in Azure's format of 2024 is made by seed, and described in a process of its own, whose peak
memory and CPU time are printed: memory must not grow with the rows.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

_BLOCK = 100_000
_MEAN_GAP_US = 36_000
_START = datetime(2024, 5, 10, tzinfo=UTC)


def write_azure(path: Path, rows: int, seed: int = 0) -> None:
    """Write a file like Azure's of 2024 with Poisson arrivals at 28 requests a second and lognormal lengths."""
    rng = np.random.default_rng(seed)
    clock_us = 0
    with path.open("w", encoding="ascii") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for first in range(0, rows, _BLOCK):
            count = min(_BLOCK, rows - first)
            times = clock_us + np.cumsum(rng.exponential(_MEAN_GAP_US, count)).astype(np.int64)
            clock_us = int(times[-1])
            inputs = np.clip(rng.lognormal(7, 1, count), 1, 14_000).astype(np.int64)
            outputs = np.clip(rng.lognormal(4, 1, count), 1, 2_000).astype(np.int64)
            file.writelines(
                f"{(_START + timedelta(microseconds=at)).isoformat(' ')},{size},{answer}\n"
                for at, size, answer in zip(times.tolist(), inputs.tolist(), outputs.tolist(), strict=True)
            )


def measure(path: Path) -> str:
    """Describe one file in this process, and tell rows, peak memory and CPU time."""
    from kvload.workloads.traces.describe import describe
    from kvload.workloads.traces.formats import read_trace

    started = time.process_time()
    found = describe(read_trace(path))
    cpu_s = time.process_time() - started
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"{found.requests:>12,} {peak_mib:>12.1f} {cpu_s:>10.1f} {1e6 * cpu_s / found.requests:>10.1f}"


def main() -> None:
    """Measure every size that is asked for."""
    parser = argparse.ArgumentParser(description="Memory and CPU time of describing a large trace.")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        sys.stdout.write(measure(arguments.measure) + "\n")
        return
    sys.stdout.write(f"{'rows':>12} {'peak MiB':>12} {'CPU s':>10} {'us a row':>10}\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "azure_2024.csv"
        for rows in arguments.rows:
            write_azure(path, rows)
            child = [sys.executable, "-m", "kvload.workloads.bench.traces", "--measure", str(path)]
            sys.stdout.write(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
