"""The fewest servers that carry a load within its limits, and what one server fewer fails at."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvload.balancing import Policy
from kvload.errors import UsageError
from kvload.experiment.prediction.forecast import figures
from kvload.servers.simulator.cluster import Hits, Load, Served, serve
from kvload.servers.simulator.replica import SimulatedRequest
from kvload.step_model import StepModel


@dataclass(frozen=True)
class Wanted:
    """What has to be kept.

    Attributes:
        slo: limits in seconds on ``ttft``, ``tpot`` and ``e2e``.
        target: share of requests that meet all of them.
        most: servers at most.
        policy: how requests are spread.
    """

    slo: Mapping[str, float]
    target: float
    most: int
    policy: Policy


@dataclass(frozen=True)
class Plan:
    """How many servers a method needs.

    Attributes:
        servers: the fewest; None where ``most`` are not enough.
        attainment: with that many, or with ``most``.
        reason: what one server fewer fails at: ``memory`` (requests wait for room in the cache or are preempted),
            ``compute`` (steps are too long, or servers are busy all the time), ``tail`` (bursts), or ``one server``.
        hours: server-hours over the trace.
        tokens: output tokens of the trace.
        hits: how the load's prefix hits are known.
        cached: share of the prompts' tokens that the prefix caches of the servers held.
    """

    method: str
    servers: int | None
    attainment: float
    reason: str
    hours: float
    tokens: int
    hits: Hits
    cached: float


def plan_servers(load: Load, model: StepModel, wanted: Wanted) -> Plan:
    """Search the number of servers, doubling and then halving the gap.

    Raises:
        UsageError: no limits are given.
    """
    if not wanted.slo:
        raise UsageError("says what has to be met", where="--slo", hint="--slo ttft=500ms,tpot=50ms")
    tried: dict[int, tuple[Served, float]] = {}

    def attain(servers: int) -> float:
        if servers not in tried:
            # Too few servers are found out long before the load is over; only the last try must be served whole.
            hopeless = Hopeless(wanted.slo, wanted.target, len(load)) if servers < wanted.most else None
            served = serve(load, model, replicas=servers, policy=wanted.policy, give_up=hopeless)
            tried[servers] = (served, figures(served, load, wanted.slo)["attainment"])
        return tried[servers][1]

    high = 1
    while attain(high) < wanted.target and high < wanted.most:
        high = min(wanted.most, 2 * high)
    span_h = float(load.arrival_s[-1] - load.arrival_s[0]) / 3600
    tokens = int(load.output_tokens.sum())
    if attain(high) < wanted.target:
        reason = _reason(tried[high][0], model)
        return _plan(tried[high], model, None, reason, high * span_h, tokens)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if attain(middle) >= wanted.target:
            high = middle
        else:
            low = middle
    reason = "one server" if high == 1 else _reason(tried[high - 1][0], model)
    return _plan(tried[high], model, high, reason, high * span_h, tokens)


def _plan(
    tried: tuple[Served, float], model: StepModel, servers: int | None, reason: str, hours: float, tokens: int
) -> Plan:
    served, attainment = tried
    return Plan(model.method, servers, attainment, reason, hours, tokens, served.hits, served.cached_share)


class Hopeless:
    """Whether more requests of a load have missed the limits already than may: told the requests so far and the time.

    Args:
        slo: limits in seconds on ``ttft``, ``tpot`` and ``e2e``.
        target: share of the requests that must meet them.
        requests: of the whole load.
    """

    def __init__(self, slo: Mapping[str, float], target: float, requests: int) -> None:
        self._slo = slo
        self._left = (1 - target) * requests
        self._seen = 0
        self._open: list[SimulatedRequest] = []

    def __call__(self, requests: Sequence[SimulatedRequest], now_s: float) -> bool:
        self._open += requests[self._seen :]
        self._seen = len(requests)
        still = []
        for request in self._open:
            missed = self._missed(request, now_s)
            if missed:
                self._left -= 1
            elif request.last_s is None and not request.refused:
                still.append(request)
        self._open = still
        return self._left < 0

    def _missed(self, request: SimulatedRequest, now_s: float) -> bool:
        """Whether it misses a limit for certain; what first tokens take beside steps is not counted."""
        first_s = now_s if request.first_s is None else request.first_s
        last_s = now_s if request.last_s is None else request.last_s
        if first_s - request.arrival_s > self._slo.get("ttft", math.inf):
            return True
        if last_s - request.arrival_s > self._slo.get("e2e", math.inf):
            return True
        later = request.output_tokens - 1
        return request.last_s is not None and later > 0 and (last_s - first_s) / later > self._slo.get("tpot", math.inf)


def _reason(served: Served, model: StepModel) -> str:
    waited = served.queue_s > 0.1 * np.nanmedian(served.e2e_s)
    running = max((stretch.decodes for replica in served.replicas for stretch in replica.log), default=0)
    if served.preemptions or (waited.any() and running < model.max_sequences and _pool_full(served)):
        return "memory"
    busy = sum(replica.busy_s for replica in served.replicas) / max(1e-9, sum(r.now_s for r in served.replicas))
    return "compute" if busy > 0.95 or not waited.any() else "tail"


def _pool_full(served: Served) -> bool:
    """Whether decoding sequences ever held nearly all of a server's pages."""
    return any(
        stretch.context > 0.85 * replica.account.pool_tokens for replica in served.replicas for stretch in replica.log
    )
