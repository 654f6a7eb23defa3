"""The fewest servers that carry a load within its limits, and what one server fewer fails at."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from kvload.balancing import Policy
from kvload.errors import UsageError
from kvload.experiment.prediction.forecast import figures, met
from kvload.experiment.prediction.outside import outside
from kvload.servers.simulator.cluster import Hits, Load, Served, serve
from kvload.servers.simulator.request import SimulatedRequest
from kvload.step_model import StepModel

LONG_S = 1e5
"""Longer than a request takes that has a server to itself."""


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
        rate_rps: mean rate of the load; infinite where all arrives at once.
        servers: the fewest; None where ``most`` are not enough, or no number is.
        attainment: with that many, or with ``most``; at most, where no number of servers is enough.
        reason: what one server fewer fails at: ``memory`` (requests wait for room in the cache or are preempted),
            ``compute`` (steps are too long, or servers are busy all the time), ``tail`` (bursts), or ``one server``;
            why no number is enough: ``size`` (requests are longer than a server takes), ``alone`` (they miss the limits
            with a server to themselves).
        hours: server-hours, from the first arrival to the last answer; None without a number of servers.
        tokens: output tokens of the trace.
        refused: requests that are longer than a server takes.
        hits: how the load's prefix hits are known.
        cached: share of the prompts' tokens that the prefix caches of the servers held.
        outside: see :func:`~kvload.experiment.prediction.outside.outside`.
    """

    method: str
    rate_rps: float
    servers: int | None
    attainment: float
    reason: str
    hours: float | None
    tokens: int
    refused: int
    hits: Hits
    cached: float
    outside: Mapping[str, float]


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
            hopeless = None
            if servers < wanted.most:
                hopeless = Hopeless(wanted.slo, wanted.target, len(load), model.token_s)
            served = serve(load, model, replicas=servers, policy=wanted.policy, give_up=hopeless)
            tried[servers] = (served, figures(served, load, wanted.slo)["attainment"])
        return tried[servers][1]

    high = 1
    while attain(high) < wanted.target and high < wanted.most:
        # No number of servers mends that; to find it out costs as much as another try.
        alone = _alone(load, model, wanted) if high == 1 else None
        if alone is not None:
            return alone
        high = min(wanted.most, 2 * high)
    if attain(high) < wanted.target:
        return _plan(load, tried[high], model, None, _reason(tried[high][0], model))
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if attain(middle) >= wanted.target:
            high = middle
        else:
            low = middle
    reason = "one server" if high == 1 else _reason(tried[high - 1][0], model)
    return _plan(load, tried[high], model, high, reason)


def _alone(load: Load, model: StepModel, wanted: Wanted) -> Plan | None:
    """The plan of a load of which too many requests miss the limits with a server to themselves; None for another.

    Nothing makes a request faster than that, and launches that take no time.
    """
    if load.hits == "reckoned" and model.caches_prefixes:
        # One request after the other may find less in one cache than many servers hold in theirs.
        return None
    cached = load.cached_tokens if load.cached_tokens is not None else np.zeros(len(load), np.int64)
    sizes = np.stack([load.prompt_tokens, load.output_tokens, cached], axis=1)
    sizes, counts = np.unique(sizes, axis=0, return_counts=True)
    prompts, outputs, cached = sizes.T
    apart = Load(np.arange(len(sizes), dtype=np.float64) * LONG_S, prompts, outputs, cached, uncached=load.uncached)
    unbound = msgspec.structs.replace(model, coefficients=(*model.coefficients[:-1], 0.0), launch_jitter=0.0)
    served = serve(apart, unbound)
    share = float(np.average(met(served, wanted.slo), weights=counts))
    if share >= wanted.target:
        return None
    taken = float(np.average([not request.refused for request in served.requests], weights=counts))
    refused = len(load) - round(taken * len(load))
    reason = "size" if taken < wanted.target else "alone"
    rate_rps = len(load) / load.window_s if load.window_s else math.inf
    tokens = int(load.output_tokens.sum())
    return Plan(model.method, rate_rps, None, share, reason, None, tokens, refused, load.hits, 0.0, {})


def _plan(load: Load, tried: tuple[Served, float], model: StepModel, servers: int | None, reason: str) -> Plan:
    served, attainment = tried
    ends_s = (load.arrival_s + served.e2e_s)[~np.isnan(served.e2e_s)]
    span_s = float(ends_s.max()) - served.began_s if len(ends_s) else 0.0
    return Plan(
        model.method,
        len(load) / load.window_s if load.window_s else math.inf,
        servers,
        attainment,
        reason,
        None if servers is None else servers * span_s / 3600,
        int(load.output_tokens.sum()),
        sum(request.refused for request in served.requests),
        served.hits,
        served.cached_share,
        outside(served, model),
    )


class Hopeless:
    """Whether more requests of a load have missed the limits already than may: told the requests so far and the time.

    Args:
        slo: limits in seconds on ``ttft``, ``tpot`` and ``e2e``.
        target: share of the requests that must meet them.
        requests: of the whole load.
        token_s: what a first token takes longer for every other one of its step, which is no part of the TPOT.
    """

    def __init__(self, slo: Mapping[str, float], target: float, requests: int, token_s: float = 0.0) -> None:
        self._slo = slo
        self._token_s = token_s
        # 90 % of 1,000 are 900, whatever 1 - 0.9 is in binary.
        self._left = math.floor((1 - target) * requests + 1e-6)
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
            elif request.last_s is None:
                still.append(request)
        self._open = still
        return self._left < 0

    def _missed(self, request: SimulatedRequest, now_s: float) -> bool:
        """Whether it misses a limit for certain; what first tokens take beside steps is not counted."""
        if request.refused:
            return True
        first_s = now_s if request.first_s is None else request.first_s
        last_s = now_s if request.last_s is None else request.last_s
        if first_s - request.arrival_s > self._slo.get("ttft", math.inf):
            return True
        if last_s - request.arrival_s > self._slo.get("e2e", math.inf):
            return True
        later = request.output_tokens - 1
        if request.last_s is None or not later:
            return False
        return (last_s - first_s - self._token_s * request.first_beside) / later > self._slo.get("tpot", math.inf)


def _reason(served: Served, model: StepModel) -> str:
    waited = served.queue_s > 0.1 * np.nanmedian(served.e2e_s)
    running = max((stretch.decodes for replica in served.replicas for stretch in replica.log), default=0)
    if served.preemptions or (waited.any() and running < model.max_sequences and _pool_full(served)):
        return "memory"
    return "compute" if served.busy > 0.95 or not waited.any() else "tail"


def _pool_full(served: Served) -> bool:
    """Whether decoding sequences ever held nearly all of a server's pages."""
    return any(
        stretch.context > 0.85 * replica.account.pool_tokens for replica in served.replicas for stretch in replica.log
    )
