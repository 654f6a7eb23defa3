"""The report of one run: one object, which every renderer only formats.

Times are seconds. A value that was not measured is None.
"""

from dataclasses import dataclass, field

from kvload.analysis.run.section import Section
from kvload.analysis.run.series import Series
from kvload.analysis.run.server_side import ServerSide
from kvload.analysis.run.slo import Attainment
from kvload.analysis.run.streams import Streams
from kvload.analysis.run.trust import Trust
from kvload.analysis.statistics.estimates import Estimate
from kvload.records import RunManifest

PERCENTILES = (50.0, 90.0, 95.0, 99.0)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One latency over the answered requests that have it.

    Attributes:
        name: ``ttft``, ``tpot``, ``itl``, ``e2e``, ``ttft_sched``, ``e2e_sched`` or ``lag``.
        n: requests with a value; for ``itl`` gaps.
        std_s: standard deviation (of the population, as numpy's default).
        percentiles: estimates by percent.
        ecdf_s: quantiles at equal steps of probability, from the least to the greatest value, for plots.
    """

    name: str
    n: int
    mean: Estimate
    std_s: float | None
    min_s: float | None
    max_s: float | None
    percentiles: dict[float, Estimate]
    ecdf_s: list[float] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of every planned request.

    ``planned = sent + unsent + lost`` and ``sent`` is the sum of ``by_status`` without ``unsent``. ``lost`` requests
    left no record (a worker died); ``torn`` of these left one that was cut short. ``causes`` holds status, cause and
    number of all requests that did not end well.
    """

    planned: int
    sent: int
    completed: int
    unsent: int
    lost: int
    torn: int
    by_status: dict[str, int]
    causes: list[tuple[str, str | None, int]]
    retried: int


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Rates over the run's duration, from answered requests; tokens as the server counted them.

    ``steady_request_rps`` and ``steady_output_tokens_per_s`` count what was answered while requests still arrived, over
    that time alone: a run's last answers are made by a server that empties. None where all were sent at once.
    """

    duration_s: float | None
    request_rps: float | None
    output_tokens_per_s: float | None
    total_tokens_per_s: float | None
    total_input_tokens: int
    total_output_tokens: int
    intended_rps: float | None
    achieved_rps: float | None
    max_in_flight: int
    steady_request_rps: float | None = None
    steady_output_tokens_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Answer lengths in tokens, and how answers ended."""

    mean: Estimate
    median: Estimate
    cap_hits: Estimate
    finish_reasons: dict[str | None, int]
    tokens_per_chunk: float | None


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """In-flight requests as the client saw them, and the server's gauges, over time in seconds."""

    in_flight: list[tuple[float, int]]
    running: list[tuple[float, float]]
    waiting: list[tuple[float, float]]
    cache_usage: list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that is said about one run."""

    manifest: RunManifest
    counts: Counts
    metrics: dict[str, Metric]
    throughput: Throughput
    lengths: Lengths
    attainment: Attainment | None
    attainment_over_scale: list[tuple[float, float | None]]
    trust: Trust
    server: ServerSide
    timeline: Timeline
    series: Series
    streams: Streams
    notes: list[str]
    sections: list[Section] = field(default_factory=list)
