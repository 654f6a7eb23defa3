"""The study's table and its ranks, from comparisons made up by hand."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kvload.errors import UsageError
from kvload.scripts.real_study import Questions, agreement, probe_scores, rows
from kvload.scripts.real_study_pictures import draw

PAGE = """
| method | bytes/token | recall | all | mean tokens |
| --- | ---: | ---: | ---: | ---: |
| none | 8,192 | 1.00 | 1.000 | 56.2 |
| none (again) | 8,192 | 1.00 | 1.000 | 56.2 |
| int8 | 2,176 | 1.00 | 0.990 | 56.2 |
| int4 | 1,152 | 0.62 | 0.806 | 58.7 |
| kivi-2 | 1,000 | 1.00 | 0.700 | 47.7 |
| snapkv:budget=512 | 2,080 | 0.12 | 0.515 | 62.9 |

| another | table |
| --- | --- |
| x | 1 |
"""


def estimate(value: float) -> dict[str, Any]:
    return {"estimate": value, "low": value - 0.1, "high": value + 0.1}


def comparison(name: str, ratio: float, *, floor: bool = False) -> dict[str, Any]:
    lengths = {"n": 20, "ratio_total": estimate(ratio), "ratio_mean": estimate(ratio + 0.05)}
    return {"name": name, "floor": floor, "lengths": {**lengths, "grown": estimate(0.25), "shrunk": estimate(0.0)}}


def found(**ratios: float) -> dict[str, Any]:
    """A comparison's JSON with these arms; the further a ratio is from 1 the fewer answers are identical."""
    names = {name.replace("_", "-").replace("snapkv", "snapkv:budget=64"): ratio for name, ratio in ratios.items()}
    texts = {name: {"texts": {"identical": estimate(1 - abs(ratio - 1))}} for name, ratio in names.items()}
    arms = [{"name": "none", "baseline": True, "answered": 20, "cap_hits": estimate(0.4)}]
    arms += [{"name": name, "baseline": False, "answered": 20, "cap_hits": estimate(0.5)} for name in names]
    changes = [{"arm": name, "task": None, "base_mean": 0.5, "arm_mean": 0.25} for name in names]
    verdicts = {name: {"findings": [{"topic": "lengths", "lead": "longer"}]} for name in names}
    return {
        "arms": arms,
        "comparisons": [comparison(name, ratio) for name, ratio in names.items()],
        "quality": {"changes": changes, "arms": texts},
        "verdicts": verdicts,
    }


def test_rows_say_what_the_comparison_says() -> None:
    base, arm = rows(found(kivi_2=1.25))
    assert base == ["none", "20", "", "", "", "", "40%", "0.500", ""]
    assert arm[:3] == ["kivi-2", "20", "75%"]
    assert arm[3] == "+25.0% (+15.0% to +35.0%)"
    assert arm[5:] == ["25% / 0%", "50%", "0.250", "longer"]


def test_the_probes_scores_are_read_from_its_page() -> None:
    assert probe_scores(PAGE) == {"none": 1.0, "int8": 0.99, "int4": 0.806, "kivi-2": 0.7, "snapkv": 0.515}
    page = Path(__file__).parents[2] / "docs" / "results" / "probe.md"
    assert probe_scores(page.read_text(encoding="utf-8"))["streamingllm"] < 0.5


def test_equal_and_reversed_orders() -> None:
    probe = probe_scores(PAGE)
    alike = agreement(found(int8=1.01, int4=1.05, kivi_2=1.2, snapkv=1.4), probe)
    assert [line.split(": ")[1][:5] for line in alike] == ["+1.00", "+1.00"]
    reverse = agreement(found(int8=1.4, int4=1.2, kivi_2=1.05, snapkv=1.01), probe)
    assert [line.split(": ")[1][:5] for line in reverse] == ["-1.00", "-1.00"]
    assert agreement(found(int8=1.4, int4=1.2), probe) == []


def test_sets_are_written_in_one_word() -> None:
    assert Questions.parse("gsm8k:24:256") == Questions("gsm8k", 24, 256)
    with pytest.raises(ValueError, match="unpack"):
        Questions.parse("gsm8k:24")


def test_pictures_show_every_method_where_its_figure_is(tmp_path: Path) -> None:
    page = tmp_path / "probe.md"
    page.write_text(PAGE, encoding="utf-8")
    made = found(int8=1.0, int4=1.05, kivi_2=1.5, snapkv=3.5)
    made["comparisons"].append(comparison("none (again)", 1.0, floor=True))
    (tmp_path / "gsm8k.json").write_text(json.dumps(made), encoding="utf-8")
    written = draw(tmp_path, ["gsm8k", "koala"], page, tmp_path / "pictures")
    assert [path.name for path in written] == ["real-model-lengths.svg", "real-model-ranks.svg"]
    text = written[0].read_text(encoding="utf-8")
    marks = dict(re.findall(r'cx="([\d.]+)"[^>]*><title>gsm8k, ([^:<]+)', text))
    places = {name: float(place) for place, name in marks.items()}
    # Equal steps to the right for equal changes; what is beyond the chart lies at its end.
    assert places["kivi-2"] - places["int8"] == pytest.approx(10 * (places["int4"] - places["int8"]), abs=0.5)
    assert places["snapkv"] > places["kivi-2"]
    assert "two servers without compression" in text
    assert "snapkv: 0.485 on the probe, 0.250 on gsm8k" in written[1].read_text(encoding="utf-8")


def test_a_study_without_comparisons_has_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing was compared"):
        draw(tmp_path, ["gsm8k"], tmp_path / "none.md", tmp_path)
