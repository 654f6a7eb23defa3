"""Whether the client measured the server or itself.

A run is client-bound where requests left late (lag p99 over 10 ms or over 5 % of the median TTFT), a worker used more
than 90 % of its core, or the client's own error at this load (TTFT error p99 of its calibration) is over 5 % of the
median TTFT. A calibration whose mock server or whose machine was at its end says nothing about the client.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvload.analysis import words
from kvload.analysis.records import latency
from kvload.analysis.records.table import RecordTable
from kvload.analysis.run.slo import finite
from kvload.records import RunManifest

LAG_LIMIT_S = 0.010
LAG_TTFT_SHARE = 0.05
CPU_LIMIT = 0.90


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
    # With a concurrency cap a late start is the cap's work, not the client's.
    if p99 is not None and manifest.max_concurrency is None:
        if p99 > LAG_LIMIT_S:
            reasons.append(f"schedule lag p99 is {p99 * 1e3:.1f} ms, over {LAG_LIMIT_S * 1e3:.0f} ms: raise --workers")
        if len(ttfts) and p99 > LAG_TTFT_SHARE * (middle := float(np.median(ttfts))):
            reasons.append(
                f"schedule lag p99 is {p99 * 1e3:.2f} ms, over {words.share(LAG_TTFT_SHARE, 0)} of the median TTFT"
                f" ({middle * 1e3:.1f} ms): raise --workers"
            )
    cpu = worker_cpu(manifest.client)
    for worker, share in cpu.items():
        if share > CPU_LIMIT:
            used, limit = words.share(share, 0), words.share(CPU_LIMIT, 0)
            reasons.append(f"worker {worker} used {used} of a core, over {limit}: raise --workers")
    error_s = own_error_s(manifest.calibration)
    if error_s is not None and len(ttfts) and error_s > LAG_TTFT_SHARE * (middle := float(np.median(ttfts))):
        reasons.append(
            f"the client's own TTFT error p99 at this load is {error_s * 1e3:.2f} ms, over"
            f" {words.share(LAG_TTFT_SHARE, 0)} of the median TTFT ({middle * 1e3:.1f} ms): raise --workers"
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
