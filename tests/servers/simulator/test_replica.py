"""The simulated server against closed forms, against itself one step at a time, and under memory pressure."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvload.servers.embedded.account.tokens import TokenAccount
from kvload.servers.simulator.cluster import Load, serve, token_times_s
from kvload.servers.simulator.cost import StepCost, StepWork, prompt_work
from kvload.servers.simulator.replica import Replica
from kvload.servers.simulator.request import SimulatedRequest
from kvload.servers.simulator.stretch import steps_to_pass
from kvload.step_model import StepModel

COST = StepCost(5e-3, 2e-3, 1e-4, 2e-7, 3e-5, 1e-9)


def model(**changes: object) -> StepModel:
    values: dict[str, object] = {
        "method": "none",
        "coefficients": (5e-3, 2e-3, 1e-4, 2e-7, 3e-5, 1e-9, 0.0),
        "draws": [],
        "hull": {},
        "steps": 1,
        "error_p50": 0.0,
        "error_p90": 0.0,
        "pool_tokens": 16 * 4096,
        "max_sequences": 8,
        "chunk_tokens": 256,
    }
    return StepModel(**(values | changes))  # type: ignore[arg-type]


def load_of(arrivals: list[float], prompts: list[int], outputs: list[int]) -> Load:
    return Load(np.array(arrivals), np.array(prompts), np.array(outputs))


class SingleSteps(Replica):
    """Takes every step by itself."""

    def _steady_steps(self, *_: object) -> int:
        return 1


def finish(replica: Replica, load: Load) -> list[SimulatedRequest]:
    rows = zip(load.arrival_s.tolist(), load.prompt_tokens.tolist(), load.output_tokens.tolist(), strict=True)
    requests = [SimulatedRequest(number, p, o, a) for number, (a, p, o) in enumerate(rows)]
    for request in requests:
        replica.run_until(request.arrival_s)
        replica.add(request)
    replica.drain()
    return requests


def test_one_request_alone_costs_what_the_formula_says() -> None:
    served = serve(load_of([1.0], [600], [4]), model(overhead_s=0.01))
    works = [StepWork(1, 1, 0, 0, 256, prompt_work(0, 256)), StepWork(1, 1, 0, 0, 256, prompt_work(256, 256))]
    works.append(StepWork(1, 1, 0, 0, 88, prompt_work(512, 88)))
    first = sum(COST.seconds(work) for work in works)
    later = [COST.seconds(StepWork(1, 0, 1, context)) for context in (601, 602, 603)]
    assert served.ttft_s[0] == pytest.approx(first + 0.01)
    assert served.e2e_s[0] == pytest.approx(first + sum(later) + 0.01)
    assert served.tpot_s[0] == pytest.approx(sum(later) / 3)
    times = token_times_s(served.requests[0], served.replicas[0])
    assert times == pytest.approx(1 + first + np.cumsum([0, *later]))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 30),
    pages=st.integers(40, 200),
    rate=st.sampled_from([2.0, 20.0, 200.0]),
)
def test_many_steps_at_a_time_equal_one_step_at_a_time(seed: int, count: int, pages: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, count))
    load = Load(arrivals, rng.integers(1, 400, count), rng.integers(1, 200, count))
    replicas = [
        kind(TokenAccount(pages, 1, page_tokens=16), COST, max_sequences=6, chunk_tokens=128)
        for kind in (Replica, SingleSteps)
    ]
    jumped, single = (finish(replica, load) for replica in replicas)
    assert [r.first_s for r in jumped] == pytest.approx([r.first_s for r in single])
    assert [r.last_s for r in jumped] == pytest.approx([r.last_s for r in single])
    assert [r.preemptions for r in jumped] == [r.preemptions for r in single]
    assert len(replicas[0].log) <= len(replicas[1].log)
    for replica, requests in zip(replicas, (jumped, single), strict=True):
        assert replica.account.free_pages == pages
        for request in requests:
            times = token_times_s(request, replica)
            assert len(times) == request.output_tokens
            assert (np.diff(times) > 0).all()
            assert times[-1] == pytest.approx(request.last_s)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), pages=st.integers(40, 200), rate=st.sampled_from([2.0, 20.0, 200.0]))
def test_a_router_sees_as_many_requests_under_way_as_with_single_steps(seed: int, pages: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    asked_s = np.cumsum(rng.exponential(1 / rate, 40)).tolist()
    comes = (rng.random(len(asked_s)) < 0.4).tolist()
    seen: list[list[int]] = []
    for kind in (Replica, SingleSteps):
        lengths = np.random.default_rng(seed)
        replica = kind(TokenAccount(pages, 1, page_tokens=16), COST, max_sequences=6, chunk_tokens=128)
        under_way = []
        for number, (time_s, is_for_it) in enumerate(zip(asked_s, comes, strict=True)):
            replica.run_until(time_s)
            under_way.append(replica.outstanding)
            if is_for_it:
                prompt, answer = int(lengths.integers(1, 400)), int(lengths.integers(1, 200))
                replica.add(SimulatedRequest(number, prompt, answer, time_s))
        seen.append(under_way)
    assert seen[0] == seen[1]


def test_a_full_pool_makes_requests_wait_or_give_way_and_all_end() -> None:
    load = load_of([0.0] * 12, [300] * 12, [150] * 12)
    roomy, tight = serve(load, model(max_sequences=12)), serve(load, model(max_sequences=12, pool_tokens=16 * 60))
    assert roomy.preemptions == 0
    assert tight.preemptions > 0
    assert np.nanmax(tight.e2e_s) > np.nanmax(roomy.e2e_s)
    assert not np.isnan(tight.e2e_s).any()


def test_what_the_pool_can_never_hold_is_refused_and_nobody_else() -> None:
    served = serve(load_of([0.0, 0.0], [5000, 10], [10, 10]), model(pool_tokens=16 * 100))
    assert served.requests[0].refused
    assert np.isnan(served.ttft_s[0])
    assert not np.isnan(served.ttft_s[1])


def test_eviction_reads_and_holds_what_is_kept() -> None:
    load = load_of([0.0] * 4, [2000] * 4, [100] * 4)
    evicting = model(kept_tokens=256, pool_tokens=16 * 600, chunk_tokens=4096)
    full = model(pool_tokens=16 * 600, chunk_tokens=4096)
    kept, whole = serve(load, evicting), serve(load, full)
    assert np.nanmean(kept.tpot_s) < np.nanmean(whole.tpot_s)
    # Prompts were read two a step, so that two answers end last: 256 tokens and what they have generated are read.
    last = kept.replicas[0].log[-1]
    assert last.first_step_s == pytest.approx(COST.seconds(StepWork(1, 0, 2, 2 * (256 + 100 - last.steps))))


def test_cached_prompt_tokens_are_not_computed_but_the_last_one_is() -> None:
    load = load_of([0.0], [512], [1])
    cold = serve(load, model(chunk_tokens=1024))
    cached = Load(load.arrival_s, load.prompt_tokens, load.output_tokens, np.array([512]))
    warm = serve(cached, model(chunk_tokens=1024))
    assert warm.ttft_s[0] == pytest.approx(COST.seconds(StepWork(1, 1, 0, 0, 1, prompt_work(511, 1))))
    assert warm.ttft_s[0] < cold.ttft_s[0]


def test_two_servers_behind_a_router_halve_the_load() -> None:
    rng = np.random.default_rng(1)
    load = Load(np.cumsum(rng.exponential(0.01, 200)), rng.integers(50, 200, 200), rng.integers(20, 60, 200))
    one, two = serve(load, model()), serve(load, model(), replicas=2)
    least = serve(load, model(), replicas=2, policy="least-loaded")
    assert np.nanmean(two.ttft_s) < np.nanmean(one.ttft_s)
    assert np.nanmean(least.ttft_s) <= np.nanmean(two.ttft_s) * 1.1
    assert np.bincount(two.server).tolist() == [100, 100]
    sessions = Load(load.arrival_s, load.prompt_tokens, load.output_tokens, session=np.arange(200) // 10)
    sticky = serve(sessions, model(), replicas=3, policy="sticky")
    assert all(len(set(sticky.server[np.arange(200) // 10 == number].tolist())) == 1 for number in range(20))


@given(st.floats(1e-4, 10), st.floats(1e-4, 0.1), st.floats(0, 1e-3))
def test_steps_to_pass_is_the_fewest(time_s: float, first_s: float, growth_s: float) -> None:
    steps = steps_to_pass(time_s, first_s, growth_s)

    def total(count: int) -> float:
        return count * first_s + growth_s * count * (count - 1) / 2

    assert total(steps) >= time_s * (1 - 1e-6)
    assert steps == 1 or total(steps - 1) < time_s * (1 + 1e-6)
    assert math.isfinite(total(steps))


def test_steps_that_take_no_time_end_with_their_requests() -> None:
    served = serve(load_of([0.0, 0.5, 0.5], [10, 10, 10], [5, 5, 1]), model(coefficients=(0.0,) * 7))
    assert served.ttft_s.tolist() == [0.0, 0.0, 0.0]


def test_a_server_that_schedules_ahead_lets_newcomers_wait_a_step_more() -> None:
    load = load_of([0.0, 0.02], [10, 10], [50, 5])
    plain, ahead = serve(load, model()), serve(load, model(ahead_steps=1))
    assert ahead.ttft_s[0] == plain.ttft_s[0]
    step_s = COST.seconds(StepWork(1, 0, 1, 14))
    assert ahead.ttft_s[1] - plain.ttft_s[1] == pytest.approx(step_s, rel=0.01)
