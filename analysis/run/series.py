"""How a run went on: latencies and throughput over its time, and TTFT against the length of the prompt."""

from dataclasses import dataclass, field

import numpy as np

from kvload.analysis.records import latency
from kvload.analysis.records.table import Floats, RecordTable

WINDOWS = 60
"""Windows of equal length that a run is cut into, at most."""

FEWEST = 5
"""Requests that a window holds on average, at least: a percentile of fewer says nothing."""

POINTS = 1500
"""Requests shown in a scatter, evenly picked."""

SHORTEST_S = 1.0
"""Arrivals over less than this have no steady part."""

Line = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Series:
    """A run over its time, in seconds since its start; windows without a value are left out.

    Attributes:
        window_s: length of a window.
        ttft_p50_s, ttft_p90_s, tpot_p50_s, tpot_p90_s: percentiles of the requests sent in each window.
        output_tokens_per_s: tokens of answers, each spread evenly from its first token to its last.
        ttft_by_prompt: prompt tokens and TTFT in seconds, a point a request.
    """

    window_s: float | None
    ttft_p50_s: Line = field(repr=False)
    ttft_p90_s: Line = field(repr=False)
    tpot_p50_s: Line = field(repr=False)
    tpot_p90_s: Line = field(repr=False)
    output_tokens_per_s: Line = field(repr=False)
    ttft_by_prompt: Line = field(repr=False)


def series_of(table: RecordTable) -> Series:
    """The series of a run's records."""
    ok = table.ok & ~np.isnan(table.t_send_s)
    sent = table.t_send_s[ok]
    ttft, tpot = latency.METRICS["ttft"](table)[ok], latency.METRICS["tpot"](table)[ok]
    prompt = np.where(np.isnan(table.prompt_tokens), table.input_tokens, table.prompt_tokens)[ok]
    ends = table.t_last_s[ok]
    last = float(np.nanmax(ends)) if len(ends) and not np.isnan(ends).all() else 0.0
    if last <= 0:
        return Series(
            window_s=None,
            ttft_p50_s=[],
            ttft_p90_s=[],
            tpot_p50_s=[],
            tpot_p90_s=[],
            output_tokens_per_s=[],
            ttft_by_prompt=[],
        )
    edges = np.linspace(0.0, last, int(np.clip(len(sent) // FEWEST, 1, WINDOWS)) + 1)
    return Series(
        window_s=float(edges[1] - edges[0]),
        ttft_p50_s=_percentile(sent, ttft, edges, 0.5),
        ttft_p90_s=_percentile(sent, ttft, edges, 0.9),
        tpot_p50_s=_percentile(sent, tpot, edges, 0.5),
        tpot_p90_s=_percentile(sent, tpot, edges, 0.9),
        output_tokens_per_s=_throughput(table.t_first_s[ok], ends, table.output_tokens[ok], edges),
        ttft_by_prompt=_scatter(prompt, ttft),
    )


def _percentile(when: Floats, values: Floats, edges: Floats, q: float) -> Line:
    known = ~np.isnan(values)
    when, values = when[known], values[known]
    place = np.clip(np.searchsorted(edges, when, side="right") - 1, 0, len(edges) - 2)
    middles = (edges[:-1] + edges[1:]) / 2
    return [
        (float(middles[window]), float(np.quantile(values[place == window], q)))
        for window in range(len(middles))
        if (place == window).any()
    ]


def _throughput(first: Floats, last: Floats, tokens: Floats, edges: Floats) -> Line:
    known = ~np.isnan(first) & ~np.isnan(last) & ~np.isnan(tokens)
    first, last, tokens = first[known], last[known], tokens[known]
    # an answer in one moment has no length of time: all of it falls into that moment's window
    spans = np.maximum(last - first, 1e-9)
    done = [float((tokens * np.clip((edge - first) / spans, 0.0, 1.0)).sum()) for edge in edges]
    middles, width = (edges[:-1] + edges[1:]) / 2, float(edges[1] - edges[0])
    return [(float(middle), (done[i + 1] - done[i]) / width) for i, middle in enumerate(middles)]


def _scatter(prompt: Floats, ttft: Floats) -> Line:
    rows = np.flatnonzero(~np.isnan(prompt) & ~np.isnan(ttft))
    rows = rows[:: -(-len(rows) // POINTS) or 1]
    return [(float(prompt[row]), float(ttft[row])) for row in rows]


def steady_rates(table: RecordTable) -> tuple[float | None, float | None]:
    """Requests and output tokens a second while requests still arrived, from the first sent to the last.

    Returns:
        both, or None twice where all were sent at once.
    """
    sent = table.t_send_s[~np.isnan(table.t_send_s)]
    span_s = float(sent.max() - sent.min()) if len(sent) > 1 else 0.0
    ok = table.ok & ~np.isnan(table.t_first_s) & ~np.isnan(table.t_last_s) & ~np.isnan(table.output_tokens)
    first, last, tokens = table.t_first_s[ok], table.t_last_s[ok], table.output_tokens[ok]
    if span_s < SHORTEST_S or not len(first):
        return None, None
    until = float(sent.max())
    made = float((tokens * np.clip((until - first) / np.maximum(last - first, 1e-9), 0.0, 1.0)).sum())
    return float(np.count_nonzero(last <= until)) / span_s, made / span_s
