"""A small reader of Prometheus' text format, with limits, for metrics of servers that nobody vouches for.

Source: Prometheus documentation, "Exposition formats", text-based format 0.0.4; exemplars and timestamps of OpenMetrics
after the value are ignored.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

LINE_LIMIT = 64 * 1024
SAMPLE_LIMIT = 200_000

_NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
_LABEL = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(,?)')
_ESCAPE = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n", '"': '"', "\\": "\\"}


@dataclass(frozen=True)
class Sample:
    """One line: a metric's name, its labels and its value."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse(text: str) -> Iterator[Sample]:
    """The samples of an exposition, in order; lines that are none are passed over.

    Args:
        text: the whole answer of ``/metrics``.
    """
    count = 0
    for line in text.split("\n"):
        if not line or line.startswith("#") or len(line) > LINE_LIMIT:
            continue
        sample = _sample(line)
        if sample is not None:
            yield sample
            count += 1
            if count >= SAMPLE_LIMIT:
                return


def _sample(line: str) -> Sample | None:
    line = line.strip()
    name = _NAME.match(line)
    if name is None:
        return None
    rest, labels = line[name.end() :].lstrip(), {}
    if rest.startswith("{"):
        place = 1
        while match := _LABEL.match(rest, place):
            labels[match.group(1)] = _ESCAPE.sub(lambda m: _ESCAPES.get(m.group(1), m.group(0)), match.group(2))
            place = match.end()
        closing = re.compile(r"\s*\}").match(rest, place)
        if closing is None:
            return None
        rest = rest[closing.end() :]
    words = rest.split()
    if not words:
        return None
    try:
        return Sample(name.group(), labels, float(words[0]))
    except ValueError:
        return None
