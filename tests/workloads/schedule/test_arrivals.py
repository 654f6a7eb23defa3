"""Offsets against what is known of the processes: gap CV, mean rate, independence, exact transformations."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.errors import TraceError, UsageError
from kvload.workloads.schedule.arrivals import ArrivalSpec, Ramp, offsets, parse_ramps, uniforms

N = 20_000


def gaps(spec: ArrivalSpec, count: int = N) -> np.ndarray:
    return np.diff(offsets(np.zeros(count), spec))


def cv(values: np.ndarray) -> float:
    return float(values.std() / values.mean())


@pytest.mark.parametrize(("burstiness", "wanted"), [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5), (25.0, 0.2)])
def test_gamma_gaps_have_the_mean_and_cv_of_vllms_burstiness(burstiness: float, wanted: float) -> None:
    found = gaps(ArrivalSpec(kind="gamma", rate=8.0, burstiness=burstiness, seed=3))
    # the mean of n gaps has standard error cv / sqrt(n) / rate; four of them
    assert found.mean() == pytest.approx(1 / 8, rel=4 * wanted / np.sqrt(N))
    assert cv(found) == pytest.approx(wanted, rel=0.05)


def test_gamma_gaps_follow_the_gamma_distribution() -> None:
    from scipy import stats

    found = gaps(ArrivalSpec(kind="gamma", rate=2.0, burstiness=0.5, seed=9), 4000)
    assert stats.kstest(found, stats.gamma(a=0.5, scale=1 / (0.5 * 2.0)).cdf).pvalue > 0.001


def test_poisson_is_memoryless() -> None:
    from scipy import stats

    found = gaps(ArrivalSpec(kind="poisson", rate=5.0, seed=1))
    assert stats.kstest(found, stats.expon(scale=1 / 5).cdf).pvalue > 0.001
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 4 / np.sqrt(N)
    per_second = np.bincount(offsets(np.zeros(N), ArrivalSpec(kind="poisson", rate=5.0, seed=1)).astype(int))[:-1]
    assert per_second.var() / per_second.mean() == pytest.approx(1, abs=0.1)


def test_poisson_is_gamma_with_burstiness_one() -> None:
    assert np.array_equal(
        offsets(np.zeros(50), ArrivalSpec(kind="poisson", rate=2.0)),
        offsets(np.zeros(50), ArrivalSpec(kind="gamma", rate=2.0, burstiness=1.0)),
    )


def test_constant_rate_has_equal_gaps() -> None:
    assert offsets(np.zeros(4), ArrivalSpec(kind="constant", rate=4.0)).tolist() == [0, 0.25, 0.5, 0.75]


def test_seeds_give_independent_streams() -> None:
    one, other = gaps(ArrivalSpec(kind="poisson", rate=1, seed=1)), gaps(ArrivalSpec(kind="poisson", rate=1, seed=2))
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(N)


def test_shards_of_one_schedule_are_independent() -> None:
    """Each of four workers takes every fourth request; gaps that different workers see do not hang together."""
    due = offsets(np.zeros(N), ArrivalSpec(kind="poisson", rate=10, seed=5))
    workers = [np.diff(due[worker::4]) for worker in range(4)]
    for worker, own in enumerate(workers):
        assert own.mean() == pytest.approx(0.4, rel=0.03)
        # Erlang(4) gaps: CV 1/2
        assert cv(own) == pytest.approx(0.5, rel=0.05)
        for other in workers[worker + 1 :]:
            # gaps four apart share three of the four steps when overlapping; those a whole round later share none
            size = min(len(own), len(other)) - 2
            assert abs(np.corrcoef(own[:size], other[2 : size + 2])[0, 1]) < 5 / np.sqrt(size)


def test_the_same_in_another_process() -> None:
    code = (
        "import numpy as np; from kvload.workloads.schedule.arrivals import ArrivalSpec, offsets;"
        "print(offsets(np.zeros(64), ArrivalSpec(kind='gamma', rate=3, burstiness=.5, seed=11)).tobytes().hex())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == offsets(np.zeros(64), ArrivalSpec(kind="gamma", rate=3, burstiness=0.5, seed=11)).tobytes().hex()


def test_golden_values() -> None:
    """Any change of these would break the comparison with runs made before."""
    assert uniforms(0, "gaps", 3) == pytest.approx(
        [0.5901116586966731, 0.05707644513720511, 0.14417958895440364], abs=1e-15
    )
    assert offsets(np.zeros(4), ArrivalSpec(kind="poisson", rate=2.0)).tolist() == [
        0.0,
        0.445935247,
        0.47532028,
        0.553167643,
    ]


def test_trace_as_recorded_starts_at_zero_and_can_be_sped_up() -> None:
    recorded = [1178.0, 1178.5, 1181.0]
    assert offsets(recorded, ArrivalSpec()).tolist() == [0, 0.5, 3]
    assert offsets(recorded, ArrivalSpec(speed=2)).tolist() == [0, 0.25, 1.5]


def test_trace_at_a_rate_keeps_its_shape() -> None:
    recorded = np.array([0, 1, 1, 2, 10.0])
    found = offsets(recorded, ArrivalSpec(rate=2.0))
    assert (len(found) - 1) / found[-1] == pytest.approx(2.0)
    assert cv(np.diff(found)) == pytest.approx(cv(np.diff(recorded)))


def test_jitter_spreads_a_coarse_clock_and_keeps_the_order() -> None:
    recorded = np.repeat(np.arange(0, 300, 3.0), 10)
    found = offsets(recorded, ArrivalSpec(jitter_s=3.0, seed=2))
    assert np.all(np.diff(found) >= 0)
    assert len(np.unique(found)) > 990
    # what was a comb with CV 3 is close to Poisson
    assert cv(np.diff(recorded)) == pytest.approx(3.0, rel=0.05)
    assert cv(np.diff(found)) == pytest.approx(1.0, rel=0.1)


def test_ramps_give_the_rates_asked_for() -> None:
    spec = ArrivalSpec(kind="poisson", ramps=(Ramp(1000, 0, 20), Ramp(500, 20, 20), Ramp(100, 2, 2)), seed=4)
    due = offsets(np.zeros(30_000), spec)
    counts, _ = np.histogram(due, [0, 250, 500, 750, 1000, 1500, 1600])
    # areas under the rate; four standard deviations of a Poisson count
    for count, area in zip(counts, [625, 1875, 3125, 4375, 10_000, 200], strict=True):
        assert abs(count - area) < 4 * np.sqrt(area) + 1
    after = due[due > 1600]
    assert 1 / np.diff(after).mean() == pytest.approx(2, rel=0.05)


def test_constant_arrivals_over_a_ramp_are_exact() -> None:
    # rate t/10 up to 2/s: the k-th arrival is where t^2/20 = k
    due = offsets(np.zeros(20), ArrivalSpec(kind="constant", ramps=(Ramp(20, 0, 2),)))
    assert due == pytest.approx(np.sqrt(20 * np.arange(20)), abs=1e-8)


def test_a_trace_can_be_bent_over_ramps() -> None:
    due = offsets([0, 1, 2, 3, 4.0], ArrivalSpec(ramps=(Ramp(2, 1, 1), Ramp(1, 2, 2))))
    assert due.tolist() == [0, 1, 2, 2.5, 3]


def test_parse_ramps() -> None:
    assert parse_ramps("1-8/60s, 8/2min") == (Ramp(60, 1, 8), Ramp(120, 8, 8))
    for text in ("", "1-8", "8/0s", "8/-1s", "a/5s", "1-2-3/5s"):
        with pytest.raises(UsageError):
            parse_ramps(text)


@pytest.mark.parametrize(
    "options",
    [
        {"speed": 0},
        {"kind": "poisson"},
        {"kind": "weird"},
        {"rate": -1.0},
        {"rate": 1.0, "speed": 2},
        {"rate": 1.0, "ramps": (Ramp(1, 1, 1),)},
        {"kind": "poisson", "rate": 1.0, "jitter_s": 1.0},
        {"start_s": 5.0, "end_s": 5.0},
        {"kind": "once", "rate": 2.0},
        {"rate": float("nan")},
    ],
)
def test_specs_that_make_no_schedule_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ArrivalSpec(**options)  # type: ignore[arg-type]


def test_what_a_trace_cannot_give() -> None:
    with pytest.raises(TraceError, match="no arrival times"):
        offsets([np.nan, np.nan], ArrivalSpec())
    with pytest.raises(TraceError, match="all requests arrive at once"):
        offsets([3.0, 3.0], ArrivalSpec(rate=1.0))
    with pytest.raises(UsageError, match="the ramps end at rate 0 after 6 of 10"):
        offsets(np.zeros(10), ArrivalSpec(kind="constant", ramps=(Ramp(5, 1, 1), Ramp(1, 0, 0))))
    assert offsets([np.nan, np.nan], ArrivalSpec(kind="once")).tolist() == [0, 0]
    assert offsets([], ArrivalSpec()).tolist() == []


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=30).map(sorted),
    st.floats(0.01, 100),
    st.floats(0, 10),
    st.integers(0, 5),
)
def test_offsets_start_at_zero_and_never_decrease(
    recorded: list[float], speed: float, jitter_s: float, seed: int
) -> None:
    found = offsets(recorded, ArrivalSpec(speed=speed, jitter_s=jitter_s, seed=seed))
    assert len(found) == len(recorded)
    assert found[0] == 0
    assert np.all(np.diff(found) >= 0)
