"""The picture of which run was made where and when."""

import re

from kvload.analysis.comparison.model import Course, Stretch
from kvload.analysis.report.course_plot import timeline

STYLES = {"none": "s0", "int8": "s1"}


def course(*stretches: Stretch) -> Course:
    return Course(time=[], bends=[], notes=[], stretches=list(stretches))


def test_bars_are_as_long_as_the_parts_and_lie_in_their_places_row() -> None:
    svg = timeline(
        course(
            Stretch("GPU 0", "none", 0, "launch", 0.0, 50.0),
            Stretch("GPU 0", "none", 0, "replay", 50.0, 100.0),
            Stretch("GPU 1", "int8", 0, "launch", 0.0, 25.0),
            Stretch("GPU 1", "<int4>", 1, "lost", 25.0, 50.0),
        ),
        STYLES,
    )
    bars = re.findall(r'<rect class="bar ([^"]*)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', svg)
    assert [style for style, *_ in bars] == ["pale s0", "s0", "pale s1", "pale floor"]
    widths = [float(width) for *_, width in bars]
    assert widths[0] == widths[1] == round(2 * widths[2], 1)
    assert float(bars[0][2]) < float(bars[2][2])  # the first place is the upper row
    assert "&lt;int4&gt;, repeat 2: lost 25 s" in svg
    assert ">GPU 0<" in svg


def test_one_place_and_no_knowledge_make_no_picture() -> None:
    assert timeline(None, STYLES) == ""
    assert timeline(course(Stretch("GPU 0", "none", 0, "replay", 0.0, 9.0)), STYLES) == ""
