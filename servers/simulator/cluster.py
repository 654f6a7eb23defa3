"""A load of requests served by simulated servers: one, or several behind a router."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

import numpy as np
import numpy.typing as npt

from kvload.balancing import Balancer, Policy
from kvload.errors import UsageError
from kvload.servers.embedded.account.scored import ScoredAccount
from kvload.servers.embedded.account.tokens import TokenAccount
from kvload.servers.simulator.cost import Kept, StepCost
from kvload.servers.simulator.prefix import Prefix, PrefixAccount
from kvload.servers.simulator.replica import Books, Replica
from kvload.servers.simulator.request import SimulatedRequest
from kvload.step_model import StepModel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


Hits = Literal["counted", "reckoned", "off", "unknown"]
"""How it is known what a prefix cache holds of a load's prompts: the server counted it; it follows in the simulation
from what prompts share; the server had none; or not at all, and then nothing is shared."""

GiveUp = Callable[[Sequence[SimulatedRequest], float], bool]
"""Told the requests so far and the time (s); says whether to stop."""

ASK_EVERY = 500
"""Arrivals after which it is asked whether to give up."""


@dataclass(frozen=True)
class Load:
    """Requests in order of arrival.

    Attributes:
        arrival_s: seconds, rising, ``(n,)``.
        prompt_tokens, output_tokens: ``(n,)``, at least 1.
        cached_tokens: tokens of each prompt that a server was seen to have already, ``(n,)``; None where none counted.
        prefixes: what each prompt shares with others of the load; None where that is not known.
        uncached: it was served without a prefix cache, and is to be so again.
        session: number of the session of each, ``(n,)``; None for none.
        server: which server took each, ``(n,)``, where it is to be served by the same again; None to have them chosen.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    cached_tokens: Ints | None = None
    session: Ints | None = None
    prefixes: Sequence[Prefix] | None = None
    uncached: bool = False
    server: Ints | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def window_s(self) -> float | None:
        """What goodput is counted over, as in a report: from the first arrival to the last, and one mean gap more.

        None where all requests arrive at once.
        """
        span_s = float(self.arrival_s[-1] - self.arrival_s[0])
        return span_s * len(self) / (len(self) - 1) if span_s else None

    @property
    def hits(self) -> Hits:
        """How prefix hits are known; a server's own count goes first."""
        if self.uncached:
            return "off"
        if self.cached_tokens is not None:
            return "counted"
        return "unknown" if self.prefixes is None else "reckoned"


@dataclass(frozen=True)
class Served:
    """What became of a load.

    Attributes:
        requests: in the order of the load.
        replicas: the servers, with their logs.
        server: which server took each request, ``(n,)``.
        queue_s, ttft_s, e2e_s: seconds from arrival; NaN for requests that a server can never hold, ``(n,)``.
        tpot_s: NaN for answers of one token, ``(n,)``.
        hits: how the load's prefix hits were known.
    """

    requests: list[SimulatedRequest]
    replicas: list[Replica]
    server: Ints
    queue_s: Floats
    ttft_s: Floats
    e2e_s: Floats
    tpot_s: Floats
    hits: Hits

    @property
    def preemptions(self) -> int:
        """Over all servers."""
        return sum(replica.preemptions for replica in self.replicas)

    @property
    def began_s(self) -> float:
        """The first arrival."""
        return self.requests[0].arrival_s

    @property
    def busy(self) -> float:
        """Share of the time, from the first arrival until it is done, that a server works."""
        passed_s = sum(max(0.0, replica.now_s - self.began_s) for replica in self.replicas)
        return sum(replica.busy_s for replica in self.replicas) / max(1e-9, passed_s)

    @property
    def cached_share(self) -> float:
        """Share of the prompts' tokens that the servers' prefix caches held."""
        served = [request for request in self.requests if request.scheduled_s is not None]
        prompts = sum(request.prompt_tokens for request in served)
        return sum(request.cached_tokens for request in served) / prompts if prompts else 0.0


def make_replica(
    model: StepModel,
    coefficients: Sequence[float] | None = None,
    *,
    sharing: bool = False,
    rng: np.random.Generator | None = None,
) -> Replica:
    """A server as a model describes it.

    Args:
        coefficients: other step times than the model's, in the order of ``COEFFICIENTS``.
        sharing: it keeps prefixes, and requests tell theirs.
        rng: draws how long launches are; they are spread evenly where None.

    Raises:
        UsageError: the model does not know the size of the cache.
    """
    return Replica(
        _account(model, sharing),
        StepCost.of(model.coefficients if coefficients is None else coefficients),
        max_sequences=model.max_sequences,
        # Engines take steps that just hold a token of each request; the scheduler wants room for one more.
        chunk_tokens=max(model.chunk_tokens, model.max_sequences + 1),
        max_model_len=model.max_model_len,
        kept=_kept(model),
        ahead_steps=model.ahead_steps,
        launches=_launches(model.launch_jitter, rng) if model.launch_jitter else None,
    )


def _launches(jitter: float, rng: np.random.Generator | None) -> Iterator[float]:
    """Launches relative to their mean: log-normal, drawn or, without a generator, at points that fill it evenly."""
    if rng is not None:
        while True:
            yield from np.exp(jitter * rng.standard_normal(1024) - jitter**2 / 2).tolist()
    from scipy.stats import norm

    # Multiples of the golden ratio fill the unit interval evenly at every length (Weyl's sequence).
    points = np.arange(1, 1024) * ((5**0.5 - 1) / 2) % 1
    yield from cycle(np.exp(jitter * norm.ppf(points) - jitter**2 / 2).tolist())


def serve(
    load: Load,
    model: StepModel,
    *,
    coefficients: Sequence[float] | None = None,
    replicas: int = 1,
    policy: Policy = "round-robin",
    give_up: GiveUp | None = None,
    seed: int | None = None,
) -> Served:
    """Serve a load.

    Args:
        load: requests in order of arrival.
        coefficients: step times in place of the model's.
        replicas: servers.
        policy: which server takes a request, where the load does not say.
        give_up: asked after every :data:`ASK_EVERY` arrivals whether the rest is worth serving; what is not served by
            then stays so.
        seed: decides how long each launch takes; they are spread evenly where None.

    Raises:
        UsageError: the model does not know the size of the cache.
    """
    hits = load.hits
    caching = model.caches_prefixes and not load.uncached
    prefixes = load.prefixes if caching and hits == "reckoned" else None
    rng = None if seed is None else np.random.default_rng(seed)
    servers = [make_replica(model, coefficients, sharing=prefixes is not None, rng=rng) for _ in range(replicas)]
    balancer = Balancer(policy, replicas)
    chosen = np.zeros(len(load), np.int64)
    requests: list[SimulatedRequest] = []
    arrivals, prompts, outputs = load.arrival_s.tolist(), load.prompt_tokens.tolist(), load.output_tokens.tolist()
    cached = load.cached_tokens.tolist() if load.cached_tokens is not None and caching else None
    given_up = False
    for number in range(len(load)):
        request = SimulatedRequest(number, prompts[number], outputs[number], arrivals[number])
        if cached is not None:
            request.cached_tokens = cached[number]
        elif prefixes is not None:
            request.prefix = prefixes[number]
        if give_up is not None and not given_up and number % ASK_EVERY == ASK_EVERY - 1:
            # Servers that nothing was sent to for a while are behind: what they would have answered is not missing.
            for replica in servers:
                replica.run_until(request.arrival_s)
            given_up = give_up(requests, request.arrival_s)
        if given_up:
            requests.append(request)
            continue

        def under_way(now_s: float = request.arrival_s) -> list[int]:
            for replica in servers:
                replica.run_until(now_s)
            return [replica.outstanding for replica in servers]

        session = int(load.session[number]) if load.session is not None else None
        place = balancer.choose(session, under_way) if load.server is None else int(load.server[number])
        servers[place].run_until(request.arrival_s)
        servers[place].add(request)
        chosen[number] = place
        requests.append(request)
    for replica in servers if not given_up else ():
        replica.drain()
    return _served(requests, servers, chosen, model, hits)


def token_times_s(request: SimulatedRequest, replica: Replica) -> Floats:
    """When each token of an answer was made, ``(output_tokens,)``, on the load's clock."""
    times: list[float] = []
    for first, last in request.spans:
        for stretch in replica.log[first : last + 1]:
            times += [stretch.token_s(step) for step in range(1, stretch.steps + 1)]
    return np.asarray(times)


def _served(
    requests: list[SimulatedRequest], servers: list[Replica], chosen: Ints, model: StepModel, hits: Hits
) -> Served:
    def column(values: list[float | None]) -> Floats:
        return np.array([np.nan if value is None else value for value in values])

    arrival = np.array([request.arrival_s for request in requests])
    first = column([request.first_s for request in requests])
    last = column([request.last_s for request in requests])
    later = np.array([request.output_tokens - 1 for request in requests], dtype=float)
    # The newest request's token is handed out last of its step's, an old one's among the first.
    behind_s = model.token_s * np.array([request.first_beside for request in requests], dtype=float)
    ttft_s = first - arrival + model.overhead_s + behind_s
    e2e_s = np.maximum(ttft_s, last - arrival + model.overhead_s)
    return Served(
        requests,
        servers,
        chosen,
        queue_s=column([request.scheduled_s for request in requests]) - arrival,
        ttft_s=ttft_s,
        e2e_s=e2e_s,
        tpot_s=np.divide(e2e_s - ttft_s, later, out=np.full(len(requests), np.nan), where=later > 0),
        hits=hits,
    )


def _account(model: StepModel, sharing: bool) -> Books:
    if model.pool_tokens is None:
        raise UsageError(
            f"the size of the cache under '{model.method}' is not known",
            hint="fit from runs against a server that reports it, or give --pool-tokens",
        )
    pages = max(1, model.pool_tokens // model.page_tokens)
    if sharing:
        return PrefixAccount(max(1, pages - model.spare_pages), model.page_tokens)
    if model.kept_tokens is None:
        return TokenAccount(pages, 1, page_tokens=model.page_tokens, chunk_tokens=model.chunk_tokens)
    return ScoredAccount(
        pages,
        1,
        page_tokens=model.page_tokens,
        kept_tokens=model.kept_tokens,
        evicts_while_decoding=model.evicts_while_decoding,
    )


def _kept(model: StepModel) -> Kept | None:
    return None if model.kept_tokens is None else Kept(model.kept_tokens, model.evicts_while_decoding)
