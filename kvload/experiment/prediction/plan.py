"""The fewest servers that carry a load within its limits, and what one server fewer fails at."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kvload.errors import UsageError
from kvload.experiment.prediction.forecast import figures
from kvload.servers.simulator.cluster import Load, Policy, Served, serve
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
    """

    method: str
    servers: int | None
    attainment: float
    reason: str
    hours: float
    tokens: int


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
            served = serve(load, model, replicas=servers, policy=wanted.policy)
            tried[servers] = (served, figures(served, load, wanted.slo)["attainment"])
        return tried[servers][1]

    high = 1
    while attain(high) < wanted.target and high < wanted.most:
        high = min(wanted.most, 2 * high)
    span_h = float(load.arrival_s[-1] - load.arrival_s[0]) / 3600
    tokens = int(load.output_tokens.sum())
    if attain(high) < wanted.target:
        reason = _reason(tried[high][0], model)
        return Plan(model.method, None, attain(high), reason, high * span_h, tokens)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if attain(middle) >= wanted.target:
            high = middle
        else:
            low = middle
    reason = "one server" if high == 1 else _reason(tried[high - 1][0], model)
    return Plan(model.method, high, attain(high), reason, high * span_h, tokens)


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
