"""A whole comparison from run folders, in every form it is shown in."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kvload.analysis.comparison.compare import compare
from kvload.analysis.comparison.model import Comparison
from kvload.analysis.records.pairs import ArmRuns
from kvload.analysis.report import compare_json, compare_terminal, html_compare
from kvload.errors import PairingError
from kvload.records import ServerInfo
from kvload.rundir import RunDir
from tests.analysis.page_reader import read_page
from tests.analysis.synthetic import arm, scrapes

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)> [red]not markup[/red] =1+1"


def arms_of(folder: Path, others: int = 2, count: int = 120, repeats: int = 2, text: str = HOSTILE) -> list[ArmRuns]:
    rng = np.random.default_rng(0)
    base = np.minimum(rng.lognormal(4, 0.8, count).astype(int) + 1, 400)

    def runs(name: str, grow: float, tpot_s: float, seed: int) -> tuple[RunDir, ...]:
        made = []
        for repeat in range(repeats):
            noise = np.random.default_rng([seed, repeat])
            lengths = base * grow * np.where(noise.random(count) < 0.2, noise.lognormal(0, 0.3, count), 1)
            run = arm(
                folder / f"{name}-{repeat}",
                [max(1, min(512, round(length))) for length in lengths],
                seed=seed * 10 + repeat,
                change=lambda i: {"tpot_s": tpot_s, "text": f"{text} {i}", "queue_s": 0.01},
                repeat=repeat,
                servers=[
                    ServerInfo(url="http://127.0.0.1:1", engine="embedded", method=name, pool_tokens=1000 * (seed + 1))
                ],
            )
            for sample in scrapes([(t, {"cache_usage": 0.1 * t, "waiting": 0.0, "running": 3.0}) for t in (0, 1, 2)]):
                run.append_scrape(sample)
            made.append(run)
        return tuple(made)

    arms = [
        ArmRuns("none", runs("none", 1, 0.01, 0), baseline=True),
        ArmRuns("none (again)", runs("again", 1, 0.01, 1), floor=True),
    ]
    return arms + [ArmRuns(f"<method>-{i}", runs(f"method{i}", 1.2 + 0.1 * i, 0.006, 2 + i)) for i in range(others)]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(arms_of(tmp_path_factory.mktemp("arms")))


def test_baseline_and_floor_come_first_and_have_no_verdict(comparison: Comparison) -> None:
    assert [found.name for found in comparison.arms[:2]] == ["none", "none (again)"]
    assert list(comparison.verdicts) == ["<method>-0", "<method>-1"]
    assert comparison.floor is not None
    assert comparison.resolution is not None
    assert all({"latency", "lengths", "service"} <= set(change.effects) for change in comparison.comparisons)


def test_intervals_over_requests_count_requests_and_verdicts_count_runs(comparison: Comparison) -> None:
    change = comparison.comparisons[1]
    assert change.population.paired == 240
    assert change.latency["e2e"].relative.n == 2
    assert change.effects["latency"].requests == 120
    assert change.effects["latency"].df == (4 - 1) * (2 - 1) + 1
    assert change.effects["latency"].family == 2
    assert change.lengths is not None
    assert change.lengths.ratio_mean.n == 120


def test_the_same_folders_give_the_same_comparison(tmp_path: Path) -> None:
    arms = arms_of(tmp_path, others=1, count=40)
    assert compare_json.as_dict(compare(arms)) == compare_json.as_dict(compare(list(reversed(arms))))


def test_without_a_floor_it_says_so(tmp_path: Path) -> None:
    arms = [found for found in arms_of(tmp_path, others=1, count=40, repeats=1) if not found.floor]
    found = compare(arms)
    assert found.floor is None
    assert found.notes[0].startswith("no noise floor was measured")
    assert found.resolution is None
    outcomes = {finding.topic: finding.outcome for finding in found.verdicts["<method>-0"].findings}
    assert outcomes["latency"] == outcomes["service"] == "undecided"


def test_forced_runs_have_no_lengths_and_say_why(tmp_path: Path) -> None:
    arms = [
        ArmRuns(name, (arm(tmp_path / name, [20] * 30, mode="forced"),), baseline=name == "a") for name in ("a", "b")
    ]
    found = compare(arms)
    assert found.comparisons[0].lengths is None
    assert {f.topic: f.outcome for f in found.verdicts["b"].findings}["lengths"] == "unmeasured"
    console = Console(file=io.StringIO(), width=120)
    compare_terminal.render(found, console)
    assert "refused: lengths were forced" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "refused: lengths were forced" in html_compare.render(found)


def test_two_floors_are_refused(tmp_path: Path) -> None:
    arms = arms_of(tmp_path, others=0, count=10, repeats=1)
    with pytest.raises(PairingError, match="floor"):
        compare([*arms, ArmRuns("third", arms[0].runs, floor=True)])


def test_the_terminal_shows_text_as_text(comparison: Comparison) -> None:
    console = Console(file=io.StringIO(), width=140)
    compare_terminal.render(comparison, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("Verdicts", "<method>-0", "A/A", "speed-up", "McNemar p", "Kaplan-Meier", "mean ratio"):
        assert word in text


def test_json_is_json_and_holds_the_curves(comparison: Comparison) -> None:
    values = json.loads(json.dumps(compare_json.as_dict(comparison), allow_nan=False))
    change = values["comparisons"][1]
    assert change["name"] == "<method>-0"
    assert sum(change["lengths"]["histogram"]["counts"]) + change["lengths"]["histogram"]["below"] == 240
    assert HOSTILE in change["worst"][0]["base_text"]
    assert values["figures"]["<method>-0"]["inflation.mean"] == change["lengths"]["ratio_mean"]["estimate"]


def test_csv_has_a_row_for_every_pair(comparison: Comparison, tmp_path: Path) -> None:
    pairs_path, arms_path = compare_json.write_csv(comparison, tmp_path)
    with pairs_path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 240
    for row in rows[::37]:
        assert float(row["difference"]) == pytest.approx(1 - int(row["tokens"]) / int(row["base_tokens"]))
        parts = sum(float(row[name]) for name in ("queueing_s", "prefill_s", "speed_s", "length_s"))
        assert parts == pytest.approx(float(row["e2e_s"]) - float(row["base_e2e_s"]), abs=1e-9)
    with arms_path.open(newline="") as file:
        assert [row["arm"] for row in csv.DictReader(file)] == ["<method>-0", "<method>-1"]


def test_the_page_runs_nothing_and_loads_nothing(comparison: Comparison) -> None:
    page = html_compare.render(comparison)
    found = read_page(page)
    assert found.tags.isdisjoint({"script", "img", "link", "iframe", "object", "embed", "form"})
    assert found.attributes.isdisjoint({"src", "onerror", "onclick", "xlink:href", "style"})
    assert "url(" not in page
    assert "@import" not in page
    assert "&lt;method&gt;-0" in page
    assert "<method>" not in page
    assert "prefers-color-scheme:dark" in page


def test_charts_are_all_there(comparison: Comparison) -> None:
    page = html_compare.render(comparison)
    assert page.count("<svg ") == 1 + 4 + 1 + 7 + 3 + 1 + 3 * 3
    for word in (
        "How many answers changed",
        "Changes with their intervals",
        "Cache usage",
        "Requests in flight",
        "Change of E2E",
        "TTFT",
    ):
        assert word in page
    assert "nan" not in page.split('<section id="samples')[0]


def test_twenty_arms_of_long_answers_stay_under_two_megabytes(tmp_path: Path) -> None:
    found = compare(arms_of(tmp_path, others=18, count=30, repeats=1, text="<&>" * 3000))
    assert len(html_compare.render(found).encode()) < 2_000_000


def test_an_arm_shows_that_it_evicted_while_it_was_measured(tmp_path: Path) -> None:
    arms = arms_of(tmp_path, others=2, count=60)
    for run in arms[2].runs:
        run.update_manifest(eviction={"requests": 10, "freed_blocks": 150})
    for run in arms[3].runs:
        run.update_manifest(eviction={"requests": 0, "freed_blocks": 0})
    notes = compare(arms).notes
    assert f"{arms[2].name}: 300 blocks were freed of 20 requests while they ran" in notes
    assert any(note.startswith(f"{arms[3].name}: nothing was evicted") for note in notes)
