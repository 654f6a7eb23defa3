"""Whether the client measured the server or itself.

A run is client-bound where requests left late (lag p99 over 10 ms or over 5 % of the median TTFT), a worker used more
than 90 % of its core, or the client's own error at this load (TTFT error p99 of its calibration) is over 5 % of the
median TTFT. A calibration whose mock server or whose machine was at its end says nothing about the client. A few late
requests do not make a run late: surely more than 1 % of them must be (Wilson's interval).

What to do about it depends on what was busy, as measured during the run: a worker, the whole machine, or a neighbour
that took its processors away (stolen time). Where nothing was, more workers would not help, and that is said.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvload.analysis import words
from kvload.analysis.records import latency
from kvload.analysis.records.table import Floats, RecordTable, count_true
from kvload.analysis.run.slo import finite
from kvload.analysis.statistics import estimates
from kvload.records import RunManifest

LAG_LIMIT_S = 0.010
LAG_TTFT_SHARE = 0.05
CPU_LIMIT = 0.90
LATE_SHARE = 0.01
STOLEN_LIMIT = 0.02
MACHINE_LIMIT = 0.90
WORKER_BUSY = 0.60
"""From this share of a core on a worker's own work can be why it is late now and then."""


@dataclass(frozen=True, kw_only=True)
class Trust:
    """The verdict on the client.

    Attributes:
        client_bound: one of the limits was passed; None where there was nothing to judge by.
        reasons: which, and what to raise.
        lag_p50_s, lag_p99_s, lag_max_s: how late requests left.
        cpu: share of a core by worker, where it was measured.
        clocks: requests by clock source (``kernel``, ``user``).
        calibration: the client's own error against the mock server, as the run recorded it.
    """

    client_bound: bool | None
    reasons: list[str]
    lag_p50_s: float | None
    lag_p99_s: float | None
    lag_max_s: float | None
    cpu: dict[str, float]
    clocks: dict[str, int]
    calibration: dict[str, Any] | None


def judge(table: RecordTable, manifest: RunManifest) -> Trust:
    """Judge the client of a run."""
    lags = finite(latency.lag_s(table)[table.sent])
    p50, p99 = (float(value) for value in np.quantile(lags, [0.5, 0.99])) if len(lags) else (None, None)
    ttfts = finite(latency.ttft_s(table)[table.ok])
    reasons = []
    cpu = worker_cpu(manifest.client)
    what_to_do = advice(manifest.client)
    # With a concurrency cap a late start is the cap's work, not the client's.
    if p99 is not None and manifest.max_concurrency is None:
        if p99 > LAG_LIMIT_S and _surely_late(lags, LAG_LIMIT_S):
            reasons.append(f"schedule lag p99 is {p99 * 1e3:.1f} ms, over {LAG_LIMIT_S * 1e3:.0f} ms: {what_to_do}")
        middle = float(np.median(ttfts)) if len(ttfts) else np.inf
        if p99 > LAG_TTFT_SHARE * middle and _surely_late(lags, LAG_TTFT_SHARE * middle):
            reasons.append(
                f"schedule lag p99 is {p99 * 1e3:.2f} ms, over {words.share(LAG_TTFT_SHARE, 0)} of the median TTFT"
                f" ({middle * 1e3:.1f} ms): {what_to_do}"
            )
    for worker, share in cpu.items():
        if share > CPU_LIMIT:
            used, limit = words.share(share, 0), words.share(CPU_LIMIT, 0)
            reasons.append(f"worker {worker} used {used} of a core, over {limit}: raise --workers")
    error_s = own_error_s(manifest.calibration)
    if error_s is not None and len(ttfts) and error_s > LAG_TTFT_SHARE * (middle := float(np.median(ttfts))):
        reasons.append(
            f"the client's own TTFT error p99 at this load is {error_s * 1e3:.2f} ms, over"
            f" {words.share(LAG_TTFT_SHARE, 0)} of the median TTFT ({middle * 1e3:.1f} ms): {what_to_do}"
        )
    return Trust(
        client_bound=bool(reasons) if len(lags) else None,
        reasons=reasons,
        lag_p50_s=p50,
        lag_p99_s=p99,
        lag_max_s=float(lags.max()) if len(lags) else None,
        cpu=cpu,
        clocks={str(name): number for name, number in table.clock.counts(table.sent).items()},
        calibration=manifest.calibration,
    )


def _surely_late(lags: Floats, limit_s: float) -> bool:
    """More than 1 % of the requests were late, and not by chance."""
    low = estimates.wilson(count_true(lags > limit_s), len(lags)).low
    return low is not None and low > LATE_SHARE


def advice(client: Mapping[str, Any]) -> str:
    """What to do about a client that was late, from what was busy while it ran.

    Args:
        client: a manifest's ``client`` entry; without measurements of the machine only the workers' own are judged.
    """
    busiest = max(worker_cpu(client).values(), default=None)
    stolen, busy = client.get("stolen_share"), client.get("machine_busy_share")
    if isinstance(stolen, int | float) and stolen > STOLEN_LIMIT:
        return f"{words.share(float(stolen), 0)} of this machine's time was taken by others on its host: use another"
    if busiest is not None and busiest > WORKER_BUSY:
        return f"a worker used {words.share(busiest, 0)} of a core: raise --workers"
    if isinstance(busy, int | float) and busy > MACHINE_LIMIT:
        return f"this machine's cores were {words.share(float(busy), 0)} busy: send from another machine"
    if busiest is None:
        return "what was busy was not measured"
    return (
        f"the workers used {words.share(busiest, 0)} of a core at most, so more of them would not help: short stalls of"
        " this machine, or a server on the same cores"
    )


def own_error_s(calibration: Mapping[str, Any] | None) -> float | None:
    """TTFT error p99 of a calibration, in seconds; None where it was not measured, or says nothing."""
    if not calibration or saturated(calibration) is not None:
        return None
    error = calibration.get("ttft_error_p99_s")
    return float(error) if isinstance(error, int | float) else None


def saturated(calibration: Mapping[str, Any]) -> str | None:
    """What was at its end when the client was calibrated, where that was not the client; None if nothing was."""
    if calibration.get("limit") == "machine":
        return "the machine"
    share = calibration.get("mock_cpu_share")
    busy = isinstance(share, int | float) and share > CPU_LIMIT
    return "the mock server" if busy or calibration.get("limit") == "mock" else None


def worker_cpu(client: Mapping[str, Any]) -> dict[str, float]:
    """The share of a core that each worker used, from a manifest's ``client`` entry (a list or a mapping)."""
    found = client.get("cpu_share")
    pairs = found.items() if isinstance(found, Mapping) else enumerate(found if isinstance(found, list) else [])
    return {str(worker): float(share) for worker, share in pairs if isinstance(share, int | float)}
