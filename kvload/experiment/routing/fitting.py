"""Fit routers for the arms of some comparisons, judge them by other ones, and tell answer lengths."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kvload import __version__
from kvload.analysis.quality.negatives import Gate
from kvload.analysis.routing.curve import SHARES, Curve, curve
from kvload.analysis.routing.evaluate import Evaluation, evaluate
from kvload.analysis.routing.fit import fit_arm
from kvload.analysis.routing.lengths import LengthModel, length_model
from kvload.analysis.routing.recognise import fit_recogniser
from kvload.analysis.routing.samples import Samples, part_of
from kvload.analysis.routing.targets import RATIO, THETA
from kvload.errors import UsageError
from kvload.experiment.routing.load import Learnt, load_comparisons
from kvload.prompt_features import FEATURES
from kvload.route_model import Routers, Target


@dataclass(frozen=True)
class Source:
    """Where the outcomes are read from; see :func:`kvload.experiment.routing.load.load_comparisons`.

    Attributes:
        part: which part of how many, of the conversations; all where None.
        prompts: what was asked is read, too.
    """

    paths: Sequence[Path]
    baseline: str | None = None
    trace: Path | None = None
    pattern: str | None = None
    arms: Sequence[str] = ()
    part: tuple[int, int] | None = None
    prompts: bool = True

    def read(self) -> Learnt:
        """The samples by arm.

        Raises:
            UsageError: there are none.
        """
        found = load_comparisons(
            self.paths,
            baseline=self.baseline,
            trace=self.trace,
            pattern=self.pattern,
            arms=self.arms,
            prompts=self.prompts,
        )
        if self.part is None:
            return found
        samples = {name: part_of(of, *self.part) for name, of in found.samples.items()}
        kept = {int(cluster) for of in samples.values() for cluster in of.cluster}
        return Learnt(samples, [one for one in found.requests if one[2] in kept], found.notes)


def parse_part(text: str | None) -> tuple[int, int] | None:
    """Which part of how many, from ``1/2``.

    Raises:
        UsageError: it is no such part.
    """
    if text is None:
        return None
    one, _, two = text.partition("/")
    if not re.fullmatch(r"[0-9]{1,3}/[0-9]{1,3}", text) or not 1 <= int(one) <= int(two) <= 100 or int(two) < 2:
        raise UsageError(f"'{text}' is no part", where="--part", hint="write 1/2 for the first of two parts")
    return int(one), int(two)


def fit_routers(
    source: Source,
    target: Target,
    *,
    theta: float = THETA,
    ratio: float = RATIO,
    gate: Gate | None = None,
    seed: int = 0,
) -> tuple[Routers, dict[str, Curve]]:
    """The routers of all arms, and what each gains out of fold.

    Raises:
        UsageError: too few requests of every arm, or nothing of what is to be foretold was measured.
    """
    learnt = source.read()
    notes = list(learnt.notes)
    routers, curves = [], {}
    failed: UsageError | None = None
    for name, samples in learnt.samples.items():
        try:
            found = fit_arm(samples, target, theta=theta, ratio=ratio, gate=gate, seed=seed)
        except UsageError as error:
            failed = failed or error
            notes.append(f"{name}: {error.message}")
            continue
        routers.append(found.router)
        curves[name] = curve(
            found.samples, found.labels, found.value, found.by_task, shares=SHARES, rng=np.random.default_rng(seed)
        )
    if not routers:
        raise failed or UsageError("no arm to learn from")
    requests = [what for what, _, _ in learnt.requests]
    tasks = [task for _, task, _ in learnt.requests]
    clusters = np.array([cluster for _, _, cluster in learnt.requests], np.int64)
    recogniser = fit_recogniser(requests, tasks, clusters, np.random.default_rng(seed)) if requests else None
    digests = sorted({digest for of in learnt.samples.values() for digest in of.digest.tolist()})
    return (
        Routers(
            kvload_version=__version__,
            target=target,
            theta=theta,
            ratio=ratio,
            features=list(FEATURES),
            routers=routers,
            recogniser=recogniser,
            prompts=digests,
            notes=notes,
        ),
        curves,
    )


def evaluate_routers(
    source: Source, routers: Routers, *, gate: Gate | None = None, seed: int = 0
) -> tuple[list[Evaluation], list[str]]:
    """What the routers are worth on requests that they were not fitted on, and what was left out.

    Raises:
        UsageError: none of their arms is there, or the comparisons share prompts with the fit.
    """
    learnt = source.read()
    notes = list(learnt.notes)
    found = []
    for router in routers.routers:
        samples = _of_arm(learnt, router.arm)
        if samples is None:
            notes.append(f"'{router.arm}' is not among the arms and is left out")
            continue
        found.append(evaluate(samples, routers, router, gate=gate, seed=seed))
    if not found:
        raise UsageError(
            f"none of {', '.join(router.arm for router in routers.routers)} was compared",
            hint=f"there are: {', '.join(learnt.samples)}",
        )
    return found, notes


def length_models(source: Source, *, seed: int = 0) -> tuple[list[LengthModel], list[str]]:
    """What every arm does to the answers' lengths, by task.

    Raises:
        UsageError: no arm has a length.
    """
    learnt = replace(source, prompts=False).read()
    notes = list(learnt.notes)
    found = []
    failed: UsageError | None = None
    for name, samples in learnt.samples.items():
        try:
            found.append(length_model(samples, seed=seed))
        except UsageError as error:
            failed = failed or error
            notes.append(f"{name}: {error.message}")
    if not found:
        raise failed or UsageError("no arm to learn from")
    return found, notes


def _of_arm(learnt: Learnt, arm: str) -> Samples | None:
    return learnt.samples.get(arm)
