"""``make bench-client``: what the client costs and how wrong it is, from 20 to 1000 requests a second.

Answers of 128 tokens, one every 10 ms, the first after 50 ms; errors are against the mock server's own account. Beside
the client, at every rate, stand bare readers that only send and read: what the machine itself can do. The last column
names what was at its end: the mock server, the machine or the client.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvload.workloads.bench.floor import Floor, measure, readers
from kvload.workloads.calibration.calibrate import Calibration, Load, calibrate, limit_of

RATES = (20.0, 80.0, 160.0, 320.0, 640.0, 1000.0)
_FLOOR_SECONDS = 3.0
HEADERS = (
    "req/s",
    "reader",
    "sent/s",
    "failed",
    "us/chunk",
    "x bare C",
    "cpu",
    "lag p50",
    "lag p99",
    "TTFT err p50",
    "TTFT err p99",
    "ITL err p50",
    "ITL err p99",
    "MB",
    "shared reads",
    "mock cpu",
    "mock late p99",
    "limit",
)


def main() -> None:
    """Measure and print a Markdown table; errors, lags and lateness in milliseconds."""
    parser = argparse.ArgumentParser(prog="python -m kvload.workloads.bench.client", description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="requests per second")
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2), help="processes that send")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each row sends")
    parser.add_argument("--no-floor", action="store_true", help="leave the bare readers out")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file, too")
    options = parser.parse_args()
    out = sys.stdout
    out.write(f"{machine()}\n\n| {' | '.join(HEADERS)} |\n|{'---:|' * len(HEADERS)}\n")
    measured: list[dict[str, Any]] = []
    with readers() as found:
        for rate in options.rates:
            floors = {} if options.no_floor else _floors(found, rate, min(options.seconds, _FLOOR_SECONDS))
            for floor in floors.values():
                out.write(f"| {' | '.join(_floor_row(floor, floors.get('bare C')))} |\n")
                out.flush()
            measured += [asdict(floor) for floor in floors.values()]
            for workers in options.workers:
                calibration = calibrate(Load(rate=rate, duration_s=options.seconds), workers=workers)
                out.write(f"| {' | '.join(_row(calibration, floors.get('bare C')))} |\n")
                out.flush()
                measured.append({"reader": "kvload", **calibration.as_dict()})
    if options.json is not None:
        text = json.dumps({"machine": machine(), "rows": measured}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


def machine() -> str:
    """The machine and the Python that the figures belong to."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{os.cpu_count()} cores ({name}), Linux {platform.release()}, Python {platform.python_version()}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _floors(commands: Mapping[str, list[str]], rate: float, seconds: float) -> dict[str, Floor]:
    load = Load(rate=rate, duration_s=seconds)
    found = {reader: measure(reader, command, load) for reader, command in commands.items()}
    return {reader: floor for reader, floor in found.items() if floor is not None}


def _floor_row(floor: Floor, bare_c: Floor | None) -> list[str]:
    limit = limit_of(floor.machine_cpu_share, floor.mock_cpu_share, floor.mock_late_p99_s, floor.cpu_share)
    return [
        f"{floor.rate:g}",
        floor.reader,
        *["-"] * 2,
        f"{floor.cpu_us_per_chunk:.1f}",
        _times(floor.cpu_us_per_chunk, bare_c),
        _percent(floor.cpu_share),
        *["-"] * 7,
        _percent(floor.shared_reads),
        _percent(floor.mock_cpu_share),
        _ms(floor.mock_late_p99_s),
        limit or "-",
    ]


def _row(found: Calibration, bare_c: Floor | None) -> list[str]:
    times_s = (
        found.lag_p50_s,
        found.lag_p99_s,
        found.ttft_error_p50_s,
        found.ttft_error_p99_s,
        found.itl_error_p50_s,
        found.itl_error_p99_s,
    )
    return [
        f"{found.rate:g}",
        "kvload" if found.workers == 1 else f"kvload, {found.workers} workers",
        _number(found.achieved_rate, 1),
        str(found.failed),
        _number(found.cpu_us_per_chunk, 1),
        _times(found.cpu_us_per_chunk, bare_c),
        _percent(found.cpu_share),
        *map(_ms, times_s),
        _number(None if found.rss_bytes is None else found.rss_bytes / 1e6, 0),
        _percent(found.shared_reads),
        _percent(found.mock_cpu_share),
        _ms(found.mock_late_p99_s),
        found.limit() or "-",
    ]


def _times(cost_us: float | None, bare_c: Floor | None) -> str:
    return "-" if cost_us is None or bare_c is None else f"{cost_us / bare_c.cpu_us_per_chunk:.1f}"


def _ms(value_s: float | None) -> str:
    return _number(None if value_s is None else value_s * 1e3, 2)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


if __name__ == "__main__":
    main()
