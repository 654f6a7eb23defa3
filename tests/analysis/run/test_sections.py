"""The promise to who adds a statistic: one file, and every report, its JSON and the gates have it."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvload.analysis import gates
from kvload.analysis.report import html_report, json_report
from kvload.analysis.run import sections
from kvload.analysis.run.summary import summarise
from kvload.cli.main import run
from kvload.errors import UsageError
from tests.analysis.page_reader import read_page
from tests.analysis.synthetic import answer, mixed, write

TOY = """
import numpy as np

from kvload.analysis.records import latency
from kvload.analysis.run.section import Figure, Statistic
from kvload.analysis.statistics import estimates


def _measure(run):
    waits = latency.ttft_s(run.table)[run.table.ok]
    slow = waits > 0.1
    return {
        "slow": estimates.wilson(int(slow.sum()), len(slow), level=run.level),
        "slowest": float(np.nanmax(waits)),
        "never": None,
    }


STATISTIC = Statistic(
    key="toy",
    title="A toy & its section",
    figures={
        "slow": Figure(label="slow starts", unit="share"),
        "slowest": Figure(label="slowest start", unit="s"),
        "never": Figure(label="not measured"),
    },
    measure=_measure,
)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY, encoding="utf-8")
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(folder)])
    forget = sections.table.cache_clear
    forget()
    yield
    forget()
    sys.modules.pop("kvload.analysis.run.sections.toy", None)


@pytest.mark.usefixtures("toy")
def test_one_file_is_in_every_form_of_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = mixed(tmp_path / "run")
    waits = [record.ttft_s for record, _ in folder.records() if record.status == "ok" and record.ttft_s is not None]
    report = summarise(folder)
    assert run(["report", str(folder.path)]) == 0
    shown = capsys.readouterr().out
    assert "A toy & its section" in shown
    assert "slow starts" in shown
    page = html_report.render(report)
    read_page(page)
    assert "A toy &amp; its section" in page
    found = json.loads(json.dumps(json_report.as_dict(report)))["sections"]["toy"]
    assert found["slow"]["estimate"] == pytest.approx(np.mean(np.array(waits) > 0.1))
    assert found["slowest"] == pytest.approx(max(waits))
    assert found["never"] is None


@pytest.mark.usefixtures("toy")
def test_gates_know_its_figures_and_their_units(tmp_path: Path) -> None:
    values = gates.report_values(summarise(mixed(tmp_path / "run")))
    assert gates.evaluate([gates.parse("toy.slowest>1h"), gates.parse("toy.slow>101%")], values) == []
    (reason,) = gates.evaluate([gates.parse("toy.slowest>1us")], values)
    assert reason.startswith("toy.slowest>1us: toy.slowest is ")
    (reason,) = gates.evaluate([gates.parse("toy.never<1")], values)
    assert "not measured" in reason
    with pytest.raises(UsageError, match="no unit"):
        gates.parse("toy.slowest>0.5")


@pytest.mark.usefixtures("toy")
def test_a_statistic_keeps_to_what_it_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(sections.table()["toy"], measure=lambda _run: {"other": 1.0})
    monkeypatch.setattr(sections, "table", lambda: {"toy": other})
    with pytest.raises(ValueError, match="'toy' declares"):
        summarise(mixed(tmp_path / "run"))


def test_later_turns_are_told_from_first_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [answer(rng, i, tokens=4, ttft_s=0.1 if i % 2 else 0.4, turn=i % 2) for i in range(40)]
    (section,) = summarise(write(tmp_path / "run", rows)).sections
    assert section.statistic.key == "turns"
    found = section.estimates()
    assert found["later"] == 0.5
    assert found["first_ttft_p50"] == pytest.approx(0.4)
    assert found["later_ttft_p50"] == pytest.approx(0.1)
    assert summarise(write(tmp_path / "single", [answer(rng, 0, tokens=4)])).sections == []
