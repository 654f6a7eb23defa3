"""The result of a comparison: one object, which every renderer only formats."""

from dataclasses import dataclass, field

from kvload.analysis.comparison.answers import Answers
from kvload.analysis.comparison.arms import ArmSummary
from kvload.analysis.comparison.decompose import Decomposition
from kvload.analysis.comparison.lengths import LengthChange
from kvload.analysis.comparison.samples import Sample
from kvload.analysis.records.pairs import Pairs, Population
from kvload.analysis.statistics.estimates import Estimate
from kvload.analysis.statistics.significance import TestResult
from kvload.records import TraceInfo


@dataclass(frozen=True, kw_only=True)
class LatencyChange:
    """The change of one latency over pairs in which both requests have it.

    Attributes:
        n: pairs.
        difference_s: mean of arm less baseline.
        relative: change of the mean, relative to the baseline's.
        beyond_floor: the same less that of the A/A pair, relative to the baseline's mean; None without a floor.
        test: Wilcoxon's signed-rank test.
    """

    n: int
    difference_s: Estimate
    relative: Estimate
    beyond_floor: Estimate | None
    test: TestResult


@dataclass(frozen=True, kw_only=True)
class SloChange:
    """The change in meeting the limits, over all pairs that were sent.

    Attributes:
        difference: of attainment.
        beyond_floor: the same less that of the A/A pair; None without a floor.
        test: McNemar's.
        lost, won: pairs that met the limits under the baseline only, and under the arm only.
        goodput: relative change of good requests per second, the durations taken as given.
    """

    difference: Estimate
    beyond_floor: Estimate | None
    test: TestResult
    lost: int
    won: int
    goodput: Estimate


@dataclass(frozen=True, kw_only=True)
class ArmComparison:
    """One arm against the baseline.

    ``lengths`` is None where they were forced. ``floor`` marks the A/A pair.
    """

    name: str
    floor: bool
    population: Population
    latency: dict[str, LatencyChange]
    lengths: LengthChange | None
    decomposition: Decomposition
    slo: SloChange | None
    worst: list[Sample] = field(repr=False)
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What can be said about one topic.

    Attributes:
        topic: ``capacity``, ``latency``, ``lengths`` or ``quality``.
        outcome: ``better``, ``worse``, ``same`` (surely within the margin), ``undecided`` or ``unmeasured``.
        text: the same in words and figures.
        needed: where undecided, about how many more requests would decide; None where no number would.
    """

    topic: str
    outcome: str
    text: str
    needed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The findings about one arm, and their sum in a sentence."""

    arm: str
    headline: str
    findings: list[Finding]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that is said about a set of arms.

    Attributes:
        trace, mode, repeats: what was replayed.
        limits_s: limits of every request, by metric.
        arms: every arm by itself, the baseline first.
        comparisons: every other arm against the baseline, the floor first where there is one.
        verdicts: by arm, without baseline and floor.
        answers: the quality of the answers; None where none were kept, or lengths were forced.
        notes: what holds for all of them.
        pairs: the pairs themselves, by arm, for files with one row a pair.
    """

    trace: TraceInfo
    mode: str
    repeats: int
    level: float
    limits_s: dict[str, float]
    arms: list[ArmSummary]
    comparisons: list[ArmComparison]
    verdicts: dict[str, Verdict]
    answers: Answers | None
    notes: list[str]
    pairs: dict[str, Pairs] = field(repr=False)

    @property
    def baseline(self) -> ArmSummary:
        """The arm the others are compared with."""
        return self.arms[0]

    @property
    def floor(self) -> ArmComparison | None:
        """The A/A pair, if it was measured."""
        return next((comparison for comparison in self.comparisons if comparison.floor), None)
