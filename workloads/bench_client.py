"""``make bench-client``: what the client costs and how wrong it is, from 20 to 1000 requests a second.

Answers of 128 tokens, one every 10 ms, the first after 50 ms; errors are against the mock server's own account. On a
machine of two cores the mock server takes one of them: a row whose mock is near 100 % says what the mock can do.
"""

import argparse
import sys

from kvload.workloads.calibrate import Calibration, Load, calibrate

RATES = (20.0, 80.0, 160.0, 320.0, 640.0, 1000.0)
HEADERS = (
    "req/s",
    "workers",
    "sent/s",
    "failed",
    "us/chunk",
    "cpu",
    "mock cpu",
    "lag p50",
    "lag p99",
    "TTFT err p50",
    "TTFT err p99",
    "ITL err p50",
    "ITL err p99",
    "MB",
    "shared reads",
)


def main() -> None:
    """Measure and print a Markdown table; errors and lags in milliseconds."""
    parser = argparse.ArgumentParser(prog="python -m kvload.workloads.bench_client", description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="requests per second")
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2), help="processes that send")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each row sends")
    options = parser.parse_args()
    out = sys.stdout
    out.write(f"| {' | '.join(HEADERS)} |\n|{'---:|' * len(HEADERS)}\n")
    for workers in options.workers:
        for rate in options.rates:
            found = calibrate(Load(rate=rate, duration_s=options.seconds), workers=workers)
            out.write(f"| {' | '.join(_row(found))} |\n")
            out.flush()


def _row(found: Calibration) -> list[str]:
    return [
        f"{found.rate:g}",
        str(found.workers),
        _number(found.achieved_rate, 1),
        str(found.failed),
        _number(found.cpu_us_per_chunk, 1),
        _percent(found.cpu_share),
        _percent(found.mock_cpu_share),
        *(
            _number(None if value is None else value * 1e3, 2)
            for value in (
                found.lag_p50_s,
                found.lag_p99_s,
                found.ttft_error_p50_s,
                found.ttft_error_p99_s,
                found.itl_error_p50_s,
                found.itl_error_p99_s,
            )
        ),
        _number(None if found.rss_bytes is None else found.rss_bytes / 1e6, 0),
        _percent(found.shared_reads),
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


if __name__ == "__main__":
    main()
