"""What a router says of itself, in Prometheus' text format."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvload.servers.router.decide import Decider
from kvload.servers.router.upstream import Upstream


@dataclass
class Seen:
    """What went through.

    Attributes:
        chunks: pieces passed on.
        first_s, firsts: summed time until a server's first piece, and how many.
        left: requests whose client left before the end.
        broken: answers that broke off.
    """

    chunks: int = 0
    first_s: float = 0.0
    firsts: int = 0
    left: int = 0
    broken: int = 0

    def chunk(self, began: float) -> None:
        """One more piece; ``began`` is when its request was sent, 0 for all but an answer's first."""
        self.chunks += 1
        if began:
            self.first_s += time.perf_counter() - began
            self.firsts += 1


def exposition(servers: Sequence[Upstream], decider: Decider, seen: Seen) -> str:
    """All metrics."""
    return "\n".join(_lines(servers, decider, seen)) + "\n"


def _lines(servers: Sequence[Upstream], decider: Decider, seen: Seen) -> Iterator[str]:
    yield "# TYPE kvload_router_requests_total counter"
    for server in servers:
        for status, count in sorted(server.answered.items()):
            yield f'kvload_router_requests_total{{server="{_safe(server.name)}",status="{status or "none"}"}} {count}'
    for name, value in (("in_flight", "in_flight"), ("healthy", "healthy")):
        yield f"# TYPE kvload_router_{name} gauge"
        for server in servers:
            yield f'kvload_router_{name}{{server="{_safe(server.name)}"}} {int(getattr(server, value))}'
    counted = decider.counters
    yield "# TYPE kvload_router_decision_seconds summary"
    yield f"kvload_router_decision_seconds_sum {counted.deciding_s:.9f}"
    yield f"kvload_router_decision_seconds_count {counted.decided}"
    yield "# TYPE kvload_router_decision_seconds_max gauge"
    yield f"kvload_router_decision_seconds_max {counted.longest_s:.9f}"
    yield "# TYPE kvload_router_first_chunk_seconds summary"
    yield f"kvload_router_first_chunk_seconds_sum {seen.first_s:.6f}"
    yield f"kvload_router_first_chunk_seconds_count {seen.firsts}"
    totals = {
        "sticky": counted.sticky,
        "elsewhere": counted.elsewhere,
        "chunks": seen.chunks,
        "clients_left": seen.left,
        "broken_answers": seen.broken,
    }
    for name, count in totals.items():
        yield f"# TYPE kvload_router_{name}_total counter"
        yield f"kvload_router_{name}_total {count}"


def _safe(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')
