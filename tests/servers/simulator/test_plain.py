"""Simulated servers against one that is written down plainly: step by step, token by token, sharing nothing."""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvload.balancing import Policy
from kvload.servers.simulator.cluster import Load, serve
from kvload.step_model import StepModel
from tests.servers.simulator.test_replica import model

PAGE = 16


@dataclass(eq=False)
class Asked:
    """A request, what is in the cache of it, and what came of it."""

    number: int
    prompt: int
    output: int
    arrival_s: float
    cached: int = 0
    earliest: int = 0
    made: int = 0
    computed: int = 0
    slots: int = 0
    reading: int = 0
    lost: bool = False
    times_s: list[float] = field(default_factory=list)
    begun_s: float = math.nan

    @property
    def known(self) -> int:
        return self.prompt + self.made

    @property
    def pages(self) -> int:
        return -(-self.slots // PAGE)


class Plain:
    """One server, as the documentation has it."""

    def __init__(self, model: StepModel) -> None:
        self.model = model
        self.pages = (model.pool_tokens or 0) // PAGE
        self.now_s, self.steps, self.preempted = 0.0, 0, 0
        self.arrived: list[Asked] = []
        self.waiting: list[Asked] = []
        self.running: list[Asked] = []
        self.began_s, self.launched_s = 0.0, -math.inf
        self.latest: list[Asked] = []

    @property
    def under_way(self) -> int:
        return len(self.arrived) + len(self.waiting) + len(self.running)

    @property
    def free(self) -> int:
        return self.pages - sum(one.pages for one in self.running)

    def after(self, one: Asked, new: int) -> int:
        """Slots that a request needs for so many more tokens."""
        kept = self.model.kept_tokens
        slots = one.slots + new
        evicted = one.computed > one.slots
        return min(slots, kept + 1) if kept and evicted and self.model.evicts_while_decoding else slots

    def most(self, prompt: int, length: int) -> int:
        """Pages that a request holds at most."""
        kept = self.model.kept_tokens
        if kept is None:
            return -(-length // PAGE)
        after = min(prompt, kept) + length - prompt
        return -(-max(prompt, min(after, kept + 1) if self.model.evicts_while_decoding else after) // PAGE)

    def run_until(self, time_s: float) -> None:
        while self.under_way and self.now_s < time_s:
            self.step()
        if not self.under_way:
            self.now_s = max(self.now_s, time_s) if math.isfinite(time_s) else self.now_s

    def add(self, one: Asked) -> None:
        longest = self.model.max_model_len or math.inf
        if one.prompt + one.output > longest or self.most(one.prompt, one.prompt + one.output) > self.pages:
            return
        one.earliest = self.steps + (self.model.ahead_steps if one.arrival_s > self.launched_s else 0)
        self.arrived.append(one)

    def reserve(self, one: Asked, new: int) -> bool:
        """Take the pages, from the newest if it must be."""
        while -(-self.after(one, new) // PAGE) - one.pages > self.free:
            newest = max(self.running, key=lambda other: other.number)
            if newest is one and len(self.running) == 1:
                return False
            self.running.remove(newest)
            self.plan.pop(newest, None)
            newest.computed = newest.slots = 0
            newest.lost = True
            self.waiting.insert(0, newest)
            self.preempted += 1
            if newest is one:
                return False
        one.slots = max(one.slots, self.after(one, new))
        return True

    def step(self) -> None:
        idle = not self.running and not self.waiting
        while self.arrived and (idle or self.arrived[0].earliest <= self.steps):
            self.waiting.append(self.arrived.pop(0))
        before, budget = self.preempted, self.model.chunk_tokens
        self.plan: dict[Asked, int] = {}
        decoding = [one for one in self.running if one.known - one.computed == 1]
        reading = [one for one in self.running if one.known - one.computed > 1]
        for one in decoding:
            if one in self.running and self.reserve(one, 1):
                self.plan[one] = 1
                budget -= 1
        for one in reading:
            if one in self.running and budget > 0:
                count = min(one.known - one.computed, budget)
                if self.reserve(one, count):
                    self.plan[one] = count
                    budget -= count
        while budget > 0 and self.waiting and len(self.running) < self.model.max_sequences and self.preempted == before:
            one = self.waiting[0]
            begun = sum(other.known - other.computed - self.plan.get(other, 0) for other in self.running)
            wanted = one.known + begun
            if self.running and self.most(wanted, wanted + 1) > self.free:
                break
            # What the server was seen to have; the last token is always computed, and a second time nothing is known.
            one.computed = one.slots = 0 if one.lost else min(one.cached, one.known - 1)
            count = min(one.known - one.computed, budget)
            one.slots += count
            if one.pages > self.free:
                one.computed = one.slots = 0
                break
            self.waiting.pop(0)
            self.running.append(one)
            one.reading = one.known
            self.plan[one] = count
            budget -= count
        self.compute(idle)

    def compute(self, idle: bool) -> None:
        step_s, end_s, decode_s, context_s, token_s, work_s, launch_s = self.model.coefficients
        seconds, prompts = step_s, False
        kept = self.model.kept_tokens
        for one, count in self.plan.items():
            if count == 1 and one.made:
                read = one.known
                if kept is not None and read > kept:
                    grown = read - max(one.reading, kept)
                    read = kept if self.model.evicts_while_decoding else min(read, kept + max(0, grown))
                seconds += decode_s + context_s * read
            else:
                prompts = True
                if math.isnan(one.begun_s):
                    one.begun_s = self.now_s
                seconds += token_s * count + work_s * sum(one.computed + place + 1 for place in range(count))
        over_s = self.now_s + seconds
        if prompts:
            if launch_s:
                ahead = self.model.ahead_steps and not idle
                self.launched_s = launch_s + (max(self.began_s, self.launched_s) if ahead else self.now_s)
                over_s = max(over_s, self.launched_s)
                for one in self.latest if ahead else ():
                    one.times_s[-1] = max(one.times_s[-1], self.launched_s)
            over_s += end_s
        self.began_s, self.now_s = self.now_s, over_s
        self.steps += 1
        self.latest = []
        for one, count in self.plan.items():
            whole = one.computed < one.reading
            one.computed += count
            if whole and one.computed >= one.reading and kept is not None:
                one.slots = min(one.computed, kept)
            elif not whole and kept is not None and self.model.evicts_while_decoding:
                # The newest token is there beside those that stay.
                one.slots = min(one.slots, kept + 1)
            if one.computed == one.known:
                one.made += 1
                one.times_s.append(over_s)
                self.latest.append(one)
                if one.made == one.output:
                    self.running.remove(one)
                    one.slots = 0


def served_plainly(load: Load, model: StepModel, replicas: int, policy: Policy) -> tuple[list[Asked], list[int]]:
    servers = [Plain(model) for _ in range(replicas)]
    found: list[Asked] = []
    places: list[int] = []
    sessions: dict[int, int] = {}
    for number in range(len(load)):
        # Under methods that evict, prompts share nothing.
        counted = load.cached_tokens if model.kept_tokens is None else None
        cached = 0 if counted is None else int(counted[number])
        one = Asked(
            number, int(load.prompt_tokens[number]), int(load.output_tokens[number]), load.arrival_s[number], cached
        )
        for server in servers:
            server.run_until(one.arrival_s)
        if policy == "least-loaded":
            # Of those with as little to do, the one whose last request is longest ago; never is before all.
            latest = [
                max((at for at, place in enumerate(places) if place == each), default=-replicas + each)
                for each in range(replicas)
            ]
            place = min(range(replicas), key=lambda each: (servers[each].under_way, latest[each]))
        elif policy == "sticky" and load.session is not None:
            place = sessions.setdefault(int(load.session[number]), len(sessions) % replicas)
        else:
            place = number % replicas
        servers[place].add(one)
        found.append(one)
        places.append(place)
    for server in servers:
        server.run_until(math.inf)
    return found, places


def made_load(seed: int, count: int, rate: float) -> Load:
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, count))
    # Some come at once, some want a single token, some are larger than any server here takes.
    arrivals[1::5] = arrivals[0 : len(arrivals[1::5]) * 5 : 5]
    arrivals.sort()
    outputs = rng.integers(1, 120, count)
    outputs[::4] = 1
    prompts = rng.integers(1, 400, count)
    prompts[2::9] = 5000
    cached = np.minimum(prompts, rng.integers(0, 500, count)) if seed % 3 == 0 else None
    return Load(arrivals, prompts, outputs, cached, session=rng.integers(0, 6, count))


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    pages=st.integers(28, 120),
    rate=st.sampled_from([2.0, 20.0, 200.0]),
    replicas=st.integers(1, 3),
    policy=st.sampled_from(["round-robin", "least-loaded", "sticky"]),
    ahead_steps=st.integers(0, 1),
    launch_s=st.sampled_from([0.0, 0.02]),
    kept_tokens=st.sampled_from([None, None, 64, 200]),
    evicts=st.booleans(),
)
def test_every_token_comes_when_plain_servers_hand_it_out(
    seed: int,
    pages: int,
    rate: float,
    replicas: int,
    policy: Policy,
    ahead_steps: int,
    launch_s: float,
    kept_tokens: int | None,
    evicts: bool,
) -> None:
    like = model(
        coefficients=(5e-3, 2e-3, 1e-4, 2e-7, 3e-5, 1e-9, launch_s),
        pool_tokens=pages * PAGE,
        max_sequences=6,
        chunk_tokens=128,
        ahead_steps=ahead_steps,
        kept_tokens=kept_tokens,
        evicts_while_decoding=evicts and kept_tokens is not None,
        max_model_len=3000,
    )
    load = made_load(seed, 30, rate)
    expected, places = served_plainly(load, like, replicas, policy)
    served = serve(load, like, replicas=replicas, policy=policy)
    assert served.server.tolist() == places
    assert [request.refused for request in served.requests] == [not one.times_s for one in expected]
    assert any(request.refused for request in served.requests)
    first_s = np.array([one.times_s[0] if one.times_s else np.nan for one in expected]) - load.arrival_s
    last_s = np.array([one.times_s[-1] if one.times_s else np.nan for one in expected]) - load.arrival_s
    begun_s = np.array([one.begun_s for one in expected]) - load.arrival_s
    assert served.queue_s == pytest.approx(begun_s, nan_ok=True, abs=1e-9)
    assert served.ttft_s == pytest.approx(first_s, nan_ok=True)
    assert served.e2e_s == pytest.approx(last_s, nan_ok=True)
    tpot = [(b - a) / (one.output - 1) for one, a, b in zip(expected, first_s, last_s, strict=True) if one.output > 1]
    assert served.tpot_s[load.output_tokens > 1] == pytest.approx(tpot, nan_ok=True)
    assert np.isnan(served.tpot_s[load.output_tokens == 1]).all()
    assert all(earlier <= later for one in expected for earlier, later in pairwise(one.times_s))
