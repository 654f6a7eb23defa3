"""What the engine counts, in Prometheus' text format."""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence

from kvload.servers.embedded.core.sequence import FinishReason, Timings

PREFIX = "kvload:"
LATENCY_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
TOKEN_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
REQUEST_S = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)


class Histogram:
    """Counts per bucket, sum and count.

    Args:
        name: without prefix.
        summary: the HELP line.
        bounds: upper bounds in seconds, rising.
    """

    def __init__(self, name: str, summary: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.summary = summary
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, labels: str) -> Iterable[str]:
        """Exposition lines; buckets are cumulative."""
        name = PREFIX + self.name
        yield f"# HELP {name} {self.summary}"
        yield f"# TYPE {name} histogram"
        seen = 0
        for bound, count in zip((*map(float, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {seen}'
        yield f"{name}_sum{{{labels}}} {self.total}"
        yield f"{name}_count{{{labels}}} {seen}"


class Metrics:
    """The engine's counters and histograms. Written by the engine's thread, read by the API's.

    Args:
        model: the served name, a label of everything.
        cache_info: labels of ``cache_config_info``.
        gauges: name to summary and a function that reads the value.
    """

    def __init__(
        self,
        model: str,
        cache_info: Mapping[str, str],
        gauges: Mapping[str, tuple[str, Callable[[], float]]],
    ) -> None:
        self._labels = f'model_name="{_escape(model)}"'
        self._cache_info = dict(cache_info)
        self._gauges = dict(gauges)
        self._lock = threading.Lock()
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.preemptions = 0
        self.finished = dict.fromkeys(FinishReason, 0)
        self.ttft = Histogram("time_to_first_token_seconds", "Arrival until the first token.", LATENCY_S)
        self.itl = Histogram("inter_token_latency_seconds", "Between a request's consecutive tokens.", TOKEN_S)
        self.e2e = Histogram("e2e_request_latency_seconds", "Arrival until the end of the answer.", REQUEST_S)
        self.queue = Histogram("request_queue_time_seconds", "Arrival until first scheduled.", REQUEST_S)
        self.prefill = Histogram("request_prefill_time_seconds", "First scheduled until the first token.", REQUEST_S)
        self.decode = Histogram("request_decode_time_seconds", "First token until the last.", REQUEST_S)

    def step(
        self, *, prompt_tokens: int, generated: int, gaps_s: Iterable[float], ttfts_s: Iterable[float], preemptions: int
    ) -> None:
        """Count one engine step.

        Args:
            prompt_tokens: prompt lengths of requests that got their first token, so that the counter agrees with the
                sum of ``usage.prompt_tokens`` and counts no token twice after a preemption.
            generated: new tokens.
            gaps_s: time since the last token, of every request that had one.
            ttfts_s: time to first token, of every request that got it.
            preemptions: total since the start.
        """
        with self._lock:
            self.prompt_tokens += prompt_tokens
            self.generation_tokens += generated
            self.preemptions = preemptions
            for gap in gaps_s:
                self.itl.observe(gap)
            for ttft in ttfts_s:
                self.ttft.observe(ttft)

    def end(self, reason: FinishReason, timings: Timings) -> None:
        """Count a request's end; only completed ones enter the histograms."""
        with self._lock:
            self.finished[reason] += 1
            if reason not in (FinishReason.STOP, FinishReason.LENGTH):
                return
            self.e2e.observe(timings.e2e_s)
            for histogram, value in (
                (self.queue, timings.queue_s),
                (self.prefill, timings.prefill_s),
                (self.decode, timings.decode_s),
            ):
                if value is not None:
                    histogram.observe(value)

    def render(self) -> str:
        """The whole exposition."""
        lines: list[str] = []
        for name, (summary, read) in self._gauges.items():
            lines += [f"# HELP {PREFIX}{name} {summary}", f"# TYPE {PREFIX}{name} gauge"]
            lines.append(f"{PREFIX}{name}{{{self._labels}}} {read()}")
        with self._lock:
            counters = (
                ("num_preemptions_total", "Requests that gave up their pages to be computed again.", self.preemptions),
                ("prompt_tokens_total", "Prompt tokens of the requests that were computed.", self.prompt_tokens),
                ("generation_tokens_total", "Tokens generated.", self.generation_tokens),
            )
            for name, summary, value in counters:
                lines += [f"# HELP {PREFIX}{name} {summary}", f"# TYPE {PREFIX}{name} counter"]
                lines.append(f"{PREFIX}{name}{{{self._labels}}} {value}")
            name = f"{PREFIX}request_success_total"
            lines += [f"# HELP {name} Requests that ended, by reason.", f"# TYPE {name} counter"]
            lines += [f'{name}{{{self._labels},finished_reason="{r}"}} {n}' for r, n in self.finished.items()]
            for histogram in (self.ttft, self.itl, self.e2e, self.queue, self.prefill, self.decode):
                lines += histogram.lines(self._labels)
        info = ",".join(f'{key}="{_escape(value)}"' for key, value in self._cache_info.items())
        name = f"{PREFIX}cache_config_info"
        lines += [f"# HELP {name} The KV cache as it was built.", f"# TYPE {name} gauge"]
        lines.append(f"{name}{{{self._labels},{info}}} 1")
        return "\n".join(lines) + "\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
