"""Gaps between tokens by how many requests ran at once, and whether CUDA graphs covered them.

Engines replay a graph for each batch size they have captured one for; a larger batch is launched kernel by kernel, and
its tokens come slower for no reason of the method's. How many requests ran when a gap ended is the server's own gauge
at the last scrape before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvload.analysis import words
from kvload.analysis.records.table import Floats, Ints, RecordTable, chunk_blocks, chunk_times_us
from kvload.records import RunManifest, ServerSample

STALE_S = 5.0
"""A scrape older than this says nothing about a gap."""

ABOVE_SHARE = 0.02
"""From this share of the gaps on it is said that more requests ran than graphs cover."""

FEWEST = 20
"""Gaps that a row holds at least."""

FLAGS = {"sglang": "--cuda-graph-max-bs", "vllm": "--max-cudagraph-capture-size"}
"""What raises the number, by engine."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """The gaps while ``low`` to ``high`` requests ran.

    Attributes:
        low, high: running requests, both included.
        gaps: how many.
        p50_s, p90_s: seconds.
        covered: whether CUDA graphs cover all of them; None where that is not known.
    """

    low: int
    high: int
    gaps: int
    p50_s: float
    p90_s: float
    covered: bool | None


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Gaps between tokens by running requests.

    Attributes:
        bands: with gaps enough to say something, fewest requests first.
        covered: most requests at once that the servers' CUDA graphs cover: the least of the servers; None if unknown.
        above: share of the gaps that ended while more ran; None where ``covered`` is.
    """

    bands: list[Band]
    covered: int | None
    above: float | None


def streams_of(table: RecordTable, samples: Sequence[ServerSample], manifest: RunManifest) -> Streams:
    """The gaps of a run's answers, but those that came in bursts."""
    gaps_s, running = _gaps(table, samples)
    known = [server.graph_streams for server in manifest.servers]
    covered = min((each for each in known if each is not None), default=None) if None not in known else None
    if not len(gaps_s):
        return Streams(bands=[], covered=covered, above=None)
    edges = 1 << np.arange(int(np.log2(max(running.max(), 1))) + 2)
    if covered is not None:
        edges = np.union1d(edges, [covered + 1])
    bands = []
    for low, high in zip(edges[:-1].tolist(), (edges[1:] - 1).tolist(), strict=True):
        inside = gaps_s[(running >= low) & (running <= high)]
        if len(inside) < FEWEST:
            continue
        p50, p90 = np.quantile(inside, [0.5, 0.9])
        bands.append(
            Band(
                low=low,
                high=high,
                gaps=len(inside),
                p50_s=float(p50),
                p90_s=float(p90),
                covered=None if covered is None else high <= covered,
            )
        )
    above = None if covered is None else float(np.mean(running > covered))
    return Streams(bands=bands, covered=covered, above=above)


def note(streams: Streams, engine: str | None) -> str | None:
    """The warning, where more requests ran than CUDA graphs cover; None where they did not, or nobody knows."""
    if streams.above is None or streams.above < ABOVE_SHARE:
        return None
    flag = FLAGS.get(engine or "")
    raised = f": raise {flag}, for all arms alike" if flag else ""
    beyond = next((band for band in streams.bands if band.covered is False), None)
    within = next((band for band in reversed(streams.bands) if band.covered), None)
    compared = ""
    if beyond is not None and within is not None:
        compared = (
            f" (gap between tokens p50 {words.seconds(within.p50_s)} while {span(within)} ran,"
            f" {words.seconds(beyond.p50_s)} while {span(beyond)} did)"
        )
    share = words.share(streams.above, 0)
    return (
        f"more requests ran at once than the server's CUDA graphs cover ({streams.covered}) at {share} of the tokens"
        f"{compared}: those were slower for a setting, not for the method{raised}"
    )


def span(band: Band) -> str:
    """``1``, or ``2 to 3``."""
    return str(band.low) if band.low == band.high else f"{band.low} to {band.high}"


def _gaps(table: RecordTable, samples: Sequence[ServerSample]) -> tuple[Floats, Ints]:
    """Every gap in seconds, and how many requests ran at its server when it ended; without those nobody knows."""
    gauges = {}
    for server in {sample.server for sample in samples}:
        seen = [(s.t_s, s.running) for s in samples if s.server == server and s.error is None and s.running is not None]
        if seen:
            gauges[server] = np.array(seen, dtype=np.float64).T
    rows = np.flatnonzero(table.ok & ~table.in_bursts & ~np.isnan(table.t_send_s))
    gaps, streams = [np.empty(0)], [np.empty(0, np.int64)]
    for block, part, starts in chunk_blocks(table, rows):
        times = chunk_times_us(table, block, part)
        lengths = np.diff(np.append(starts, len(times)))
        sent, served = np.repeat(table.t_send_s[part], lengths), np.repeat(table.server[part], lengths)
        ends = sent + times / 1e6
        gap = np.diff(times, prepend=times[:1]) / 1e6
        inside = np.ones(len(times), np.bool_)
        inside[starts] = False
        for server, (when, running) in gauges.items():
            mine = inside & (served == server)
            place = np.searchsorted(when, ends[mine], side="right") - 1
            fresh = (place >= 0) & (ends[mine] - when[np.maximum(place, 0)] <= STALE_S)
            gaps.append(np.maximum(gap[mine][fresh], 0.0))
            streams.append(np.maximum(np.rint(running[place[fresh]]), 1).astype(np.int64))
    return np.concatenate(gaps), np.concatenate(streams)
