"""The result of a comparison: one object, which every renderer only formats."""

from dataclasses import dataclass, field
from typing import Literal

from kvload.analysis.comparison.answers import Answers
from kvload.analysis.comparison.arms import ArmSummary
from kvload.analysis.comparison.decompose import Decomposition
from kvload.analysis.comparison.lengths import LengthChange
from kvload.analysis.comparison.room import CacheRoom
from kvload.analysis.comparison.samples import Sample
from kvload.analysis.records.pairs import Pairs, Population
from kvload.analysis.statistics.estimates import Estimate
from kvload.analysis.statistics.layout import Effect
from kvload.analysis.statistics.significance import TestResult
from kvload.records import TraceInfo

Topic = Literal["latency", "service", "lengths", "quality", "answers", "cache room"]
Outcome = Literal["better", "worse", "same", "differs", "undecided", "unmeasured"]


@dataclass(frozen=True, kw_only=True)
class LatencyChange:
    """The change of one latency over pairs in which both requests have it.

    Attributes:
        n: pairs.
        difference_s: mean of arm less baseline, its interval over requests.
        relative: change of the mean, relative to the baseline's, its interval from runs.
        test: Wilcoxon's signed-rank test over requests.
    """

    n: int
    difference_s: Estimate
    relative: Estimate
    test: TestResult


@dataclass(frozen=True, kw_only=True)
class SloChange:
    """The change in meeting the limits, over all pairs that were sent.

    Attributes:
        n: pairs.
        base_share, share: of requests that met the limits, over these pairs.
        difference: of attainment, its interval from runs.
        test: McNemar's.
        lost, won: pairs that met the limits under the baseline only, and under the arm only.
        goodput: relative change of good requests per second over the arrival window, its interval from runs.
    """

    n: int
    base_share: float | None
    share: float | None
    difference: Estimate
    test: TestResult
    lost: int
    won: int
    goodput: Estimate


@dataclass(frozen=True, kw_only=True)
class ArmComparison:
    """One arm against the baseline.

    Attributes:
        floor: this is the A/A pair.
        perturbed: this is the baseline in another dtype, which is in no verdict but a measure for texts.
        effects: what is judged, by topic (``latency``, ``service``, ``lengths``, ``quality``) and, as information,
            ``ttft``, ``tpot``, ``e2e``, ``attainment`` and ``goodput``; missing where it was not measured.
        lengths: None where they were forced.
        slo: None without limits.
        room: what the cache holds.
        unlike_prompts: pairs of which the two servers counted the prompt unlike, so that one read another.
    """

    name: str
    floor: bool
    perturbed: bool
    population: Population
    unlike_prompts: int
    effects: dict[str, Effect]
    latency: dict[str, LatencyChange]
    lengths: LengthChange | None
    decomposition: Decomposition
    slo: SloChange | None
    room: CacheRoom
    worst: list[Sample] = field(repr=False)
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What can be said about one topic.

    Attributes:
        topic: what it is about.
        outcome: ``better`` or ``worse`` (found, after correction for the number of arms); ``same`` (surely within the
            margin); ``differs`` (found, and neither good nor bad: texts, and shorter answers whose quality
            was not seen to stay); ``undecided`` (measured, but not well enough
            to tell); ``unmeasured`` (nothing to judge by).
        lead: the finding in one plain sentence without a full stop.
        detail: the figures it rests on, a sentence each: first what the verdict needs to be true (interval, adjusted p,
            family, runs), then what belongs to it.
        advice: where undecided or unmeasured, what would decide; None where nothing would.
        effect: the change that was judged; None where there is none.
        unit: of ``effect``: ``relative`` or ``points`` (of a share or a score).
        margin: changes within it count as none, in the same unit; None where nothing was judged.
    """

    topic: Topic
    outcome: Outcome
    lead: str
    detail: tuple[str, ...] = ()
    advice: str | None = None
    effect: Effect | None = None
    unit: Literal["relative", "points"] = "relative"
    margin: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The findings about one arm, in the order they are read, and their sum in a sentence.

    Attributes:
        broken: how many more of its requests than of the baseline's are no answers, where that alone is a reason not to
            use it; None where it is not.
    """

    arm: str
    headline: str
    findings: list[Finding]
    broken: str | None = None

    def finding(self, topic: Topic) -> Finding | None:
        """What was found about a topic, if it was looked at."""
        return next((found for found in self.findings if found.topic == topic), None)


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """How small a change of latency this experiment can tell.

    Attributes:
        noise: how far two runs of the same server differed (relative; root mean square over repeats).
        smallest: a change below this cannot be told (half the widest interval of the arms).
        repeats: repeats of each arm in all with which ``wanted`` could be told; None where no reasonable number.
        wanted: the change that ``repeats`` is planned for.
        time_s: about how long an experiment of that many repeats takes on this machine; None where not known.
        drifts: the noise is so large that it must be said before anything else.
    """

    noise: float
    smallest: float
    wanted: float
    repeats: int | None
    time_s: float | None
    drifts: bool

    def sentence(self) -> str:
        """What a reader must know before any verdict."""
        text = (
            f"two runs of the same server differed by {_percent(self.noise, 3)}: differences of latency under"
            f" {_percent(self.smallest, 2)} cannot be told here"
        )
        if self.repeats is None:
            return text + "; a quieter machine is needed"
        time = "" if self.time_s is None else f", about {max(self.time_s / 60, 1):.0f} min,"
        return text + f"; --repeats {self.repeats}{time} could tell {_percent(self.wanted, 2)}"


def _percent(share: float, digits: int) -> str:
    value = share * 100
    return f"{value:.{digits}g} %" if value < 10**digits - 0.5 else f"{value:,.0f} %"


@dataclass(frozen=True, kw_only=True)
class RunLimit:
    """What became of a limit on a whole run's percentile (``p99_ttft``) in the runs of one arm.

    ``worst_s`` is None where in one of them so many requests were not answered that it has no such percentile.
    """

    arm: str
    name: str
    limit_s: float
    runs: int
    met: int
    worst_s: float | None


@dataclass(frozen=True)
class Stretch:
    """A part of a run, on the clock of the experiment.

    Attributes:
        place: where it was made (``GPU 0``).
        arm, repeat: the run.
        what: ``launch``, ``replay``, ``stop``, or ``lost`` for all of a run that failed or was interrupted.
        began_s, ended_s: since the experiment began, without the time between its sessions.
    """

    place: str
    arm: str
    repeat: int
    what: str
    began_s: float
    ended_s: float


@dataclass(frozen=True)
class Course:
    """How the runs of a comparison were made, in sentences and as stretches of time.

    Attributes:
        time: how long they took, side by side or in a row.
        bends: what the way they were made changes beyond noise, or may change without that having been measured.
        notes: where they were made, and what was found to change nothing.
        stretches: the parts of all runs.
    """

    time: list[str]
    bends: list[str]
    notes: list[str]
    stretches: list[Stretch] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that is said about a set of arms.

    Attributes:
        trace, mode, repeats: what was replayed.
        closed_loop: the server sets the pace, not the schedule.
        limits_s: limits of every request, by metric.
        run_limits: limits on percentiles of whole runs, arm by arm; they are no part of attainment.
        arms: every arm by itself, the baseline first.
        comparisons: every other arm against the baseline, the floor first where there is one.
        verdicts: by arm, without baseline and floor.
        resolution: what the A/A pair says about the machine; None without one.
        answers: the quality of the answers; None where none were kept, or lengths were forced.
        notes: what holds for all of them.
        pairs: the pairs themselves, by arm, for files with one row a pair.
        course: how the runs were made; None where that is not known.
    """

    trace: TraceInfo
    mode: str
    repeats: int
    level: float
    closed_loop: bool
    limits_s: dict[str, float]
    run_limits: list[RunLimit]
    arms: list[ArmSummary]
    comparisons: list[ArmComparison]
    verdicts: dict[str, Verdict]
    resolution: Resolution | None
    answers: Answers | None
    notes: list[str]
    pairs: dict[str, Pairs] = field(repr=False)
    course: Course | None = None

    @property
    def baseline(self) -> ArmSummary:
        """The arm the others are compared with."""
        return self.arms[0]

    @property
    def floor(self) -> ArmComparison | None:
        """The A/A pair, if it was measured."""
        return next((comparison for comparison in self.comparisons if comparison.floor), None)

    @property
    def perturbed(self) -> ArmComparison | None:
        """The baseline in another dtype, if it was measured."""
        return next((comparison for comparison in self.comparisons if comparison.perturbed), None)

    @property
    def judged_nothing(self) -> bool:
        """Whether no arm has anything measured of latency, service, lengths or quality."""
        outcomes = [
            found.outcome
            for verdict in self.verdicts.values()
            for found in verdict.findings
            if found.topic not in {"answers", "cache room"}
        ]
        return bool(outcomes) and all(outcome == "unmeasured" for outcome in outcomes)
