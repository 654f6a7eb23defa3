"""What methods carry as simulations say, against a walk over all rates and against crossings known in closed form."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvload.cli.main import run
from kvload.errors import UsageError
from kvload.experiment.prediction.capacity import (
    TOLERANCE,
    AtRate,
    capacity_cells,
    crossing_of,
    find_capacities,
    search,
)
from kvload.experiment.prediction.forecast import Serving, figures
from kvload.experiment.prediction.loads import other_arrivals
from kvload.servers.simulator.cluster import Load, serve
from kvload.step_model import StepModel, StepModels, write

SLO = {"ttft": 0.5, "tpot": 0.03}


def server(method: str, scale: float, pool_tokens: int) -> StepModel:
    return StepModel(
        method=method,
        engine="vllm",
        coefficients=(6e-3, 3e-3, 1e-4, scale * 6e-8, 4e-5, 2e-9, 0.0),
        draws=[],
        hull={},
        steps=1,
        error_p50=0.0,
        error_p90=0.0,
        overhead_s=0.01,
        pool_tokens=pool_tokens,
        max_sequences=256,
        chunk_tokens=8192,
    )


MODELS = StepModels(kvload_version="0", models=[server("none", 1.0, 20_000), server("int4", 0.3, 80_000)])


def requests(count: int = 120) -> Load:
    rng = np.random.default_rng(5)
    return Load(np.zeros(count), rng.integers(50, 2000, count), rng.integers(20, 200, count))


def arriving(load: Load, rate: float, number: int) -> Load:
    return other_arrivals(load, rate, 1.0, 1 + number)


def test_the_search_ends_where_a_walk_over_all_rates_crosses() -> None:
    (found, other) = find_capacities(
        requests(), MODELS, ["none", "int4"], SLO, arriving, target=0.9, serving=Serving(draws=0)
    )
    walk = np.geomspace(1.0, 40.0, 120)
    shares = []
    for rate in walk:
        load = arriving(requests(), float(rate), 0)
        shares.append(figures(serve(load, MODELS.of("none")), load, SLO)["attainment"])
    reached = np.array(shares) >= 0.9
    # Chance makes the share cross more than once near the end: the search may find any of these places.
    first, last = walk[np.argmin(reached)], walk[len(walk) - 1 - int(np.argmax(reached[::-1]))]
    assert first / 1.06 <= found.rate_rps <= last * 1.06
    assert found.ratio is None
    assert other.ratio is not None
    assert other.rate_rps > found.rate_rps
    assert other.ratio[0] == pytest.approx(other.rate_rps / found.rate_rps)
    assert found.held_s == pytest.approx(120 / found.rate_rps)


def test_draws_of_arrivals_give_an_interval_around_the_middle() -> None:
    found = find_capacities(requests(60), MODELS, ["none", "int4"], SLO, arriving, target=0.9, serving=Serving(draws=5))
    for each in found:
        assert each.low <= each.rate_rps <= each.high
        assert each.low < each.high


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 5e4), st.floats(0.01, 100), st.floats(1.1, 4))
def test_a_crossing_is_found_from_anywhere(crossing: float, start: float, step: float) -> None:
    found = search(lambda rate: 1.0 if rate <= crossing else 0.0, 0.9, start, step)
    assert found / (1 + TOLERANCE) <= crossing <= found * (1 + TOLERANCE)


def test_a_search_without_an_end_says_so() -> None:
    assert search(lambda _: 1.0, 0.9, 1.0, 2.0) == math.inf
    assert search(lambda _: 0.0, 0.9, 1.0, 2.0) == 0.0


def test_nothing_carried_has_no_multiple_and_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = requests(20)
    large.prompt_tokens[:5] = 30_000
    found = find_capacities(large, MODELS, ["none", "int4"], SLO, arriving, target=0.9, serving=Serving(draws=2))
    assert (found[0].rate_rps, found[0].too_large) == (0.0, 5)
    assert (found[1].ratio, found[1].too_large) == (None, 0)
    model, trace = tmp_path / "model.json", tmp_path / "trace.csv"
    write(model, MODELS)
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01 00:00:01.0000000,30000,40\n", encoding="utf-8"
    )
    asked = ["predict", str(trace), "--model", str(model), "--slo", "ttft=1ms", "--rate", "auto", "--draws", "0"]
    assert run(asked) == 0
    shown = capsys.readouterr().out
    assert "none: 1 request is larger than the server's context or whole cache" in shown
    assert "even one at a time" in shown


def test_limits_are_asked_for() -> None:
    with pytest.raises(UsageError, match="needs limits"):
        find_capacities(requests(2), MODELS, ["none"], {}, arriving, target=0.9)


def test_crossings_between_rates_are_in_proportion_to_the_shares() -> None:
    rates, even = np.array([1.0, 4.0, 16.0]), np.ones(3)
    assert crossing_of(rates, np.array([1.0, 0.95, 0.75]), even, 0.9) == pytest.approx(4 * 4**0.25)
    assert crossing_of(rates, np.array([1.0, 1.0, 0.9]), even, 0.9) == math.inf
    assert crossing_of(rates, np.array([0.5, 0.4, 0.3]), even, 0.9) == 0.0
    # The second and third are out of order by chance: together they reach 0.925, and the crossing is beyond them.
    assert crossing_of(rates, np.array([1.0, 0.85, 1.0]), even, 0.9) == math.inf


def test_capacities_of_runs_are_held_against_the_predicted_ones() -> None:
    def point(method: str, rate: float, measured: float, predicted: float, wide: float = 0.0) -> AtRate:
        return AtRate(method, rate, 100, measured, predicted, predicted - wide, min(1.0, predicted + wide))

    points = [
        point("none", 16, 0.6, 0.7, 0.1),
        point("none", 4, 1.0, 1.0),
        point("none", 8, 0.95, 0.96, 0.02),
        point("int4", 8, 1.0, 1.0),
        point("int4", 16, 0.97, 0.8),
    ]
    (cell,) = capacity_cells(points, 0.9)
    assert (cell.method, cell.met_at, cell.missed_at) == ("none", 8, 16)
    assert cell.measured == pytest.approx(8 * 2 ** (0.05 / 0.35))
    assert cell.predicted == pytest.approx(8 * 2 ** (0.06 / 0.26))
    assert cell.low < cell.predicted < cell.high
    assert cell.error == pytest.approx(cell.predicted / cell.measured - 1)
    (beyond,) = capacity_cells([point("none", 4, 0.95, 0.8), point("none", 8, 0.5, 0.4)], 0.9)
    assert (beyond.predicted, beyond.slowest, beyond.fastest) == (0.0, 4, 8)
    assert math.isnan(beyond.error)


def test_the_command_line_searches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, trace = tmp_path / "model.json", tmp_path / "trace.csv"
    write(model, MODELS)
    rows = [f"2024-01-01 00:00:{second:02d}.0000000,{300 + 20 * second},40" for second in range(50)]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n", encoding="utf-8")
    asked = ["predict", str(trace), "--model", str(model), "--slo", "ttft=500ms", "--rate", "auto", "--draws", "2"]
    assert run(asked) == 0
    shown = capsys.readouterr().out
    assert "times none's" in shown
    assert "--repeat 10" in shown
    assert run([*asked, "--json"]) == 0
    none, int4 = json.loads(capsys.readouterr().out)
    assert none["method"] == "none"
    assert int4["ratio"][0] >= 1
    assert run([*asked, "--out", str(tmp_path / "runs")]) == 2
    assert "--rate 4,8" in capsys.readouterr().err
