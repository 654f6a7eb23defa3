"""What an experiment will do, decided before it starts and kept beside its runs, so that it can be resumed."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from kvload.address import Address
from kvload.errors import RunDirError, TraceError, UsageError
from kvload.experiment.options import RunOptions
from kvload.private import make_folder, write_bytes
from kvload.rundir import RunDir
from kvload.servers.engines.base import LaunchRequest
from kvload.workloads.run.plan import Sending

PLAN_NAME = "experiment.json"
FLOOR_SUFFIX = " (again)"
PERTURBED_SUFFIX = " (perturbed)"

Floor = Literal["again", "perturb", "none"]
"""How much equal arms differ is shown by the baseline a second time, by that and the baseline in another dtype, or not
at all."""


class Arm(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way of serving the trace.

    Attributes:
        name: unique; what the report calls it.
        method: the compression method to launch a server with (``kivi-2:residual=64``), or None for ``url``.
        url: a server that someone else runs.
        baseline: what the others are compared with; exactly one arm.
        floor: the baseline a second time, which shows how much two equal arms differ.
        perturbed: the baseline in another dtype, which shows how many answers that alone changes.
        engine_args: passed to the engine beside those that all arms share.
    """

    name: str
    method: str | None = None
    url: str | None = None
    baseline: bool = False
    floor: bool = False
    perturbed: bool = False
    engine_args: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """Its name, or that of the arm that it runs a second time."""
        return self.name.removesuffix(FLOOR_SUFFIX) if self.floor else self.name

    def address(self, *, insecure: bool) -> Address | None:
        """Where the server is that someone else runs; None for one that is launched.

        Args:
            insecure: accept any certificate.
        """
        return None if self.url is None else Address.parse(self.url, where=f"--arm {self.name}", insecure=insecure)


class PlannedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One replay: an arm in one repeat, and the folder it is kept in."""

    arm: str
    repeat: int
    folder: str


class ExperimentPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides the outcome of an experiment.

    Attributes:
        trace, trace_sha256: the trace's path as given, and its content's digest.
        launch: how servers are launched, but for their method.
        run: what all runs share.
        gpus: those that arms are spread over, side by side; empty where one runs after the other.
        per_arm: GPUs of one server.
        alone: the baseline runs once more with nothing beside it.
        place, place_address: where servers are started, see :func:`kvload.servers.launcher.place_of`.
    """

    trace: str
    trace_sha256: str
    arms: tuple[Arm, ...]
    repeats: int
    launch: LaunchRequest = msgspec.field(default_factory=LaunchRequest)
    run: RunOptions = msgspec.field(default_factory=RunOptions)
    gpus: tuple[str, ...] = ()
    per_arm: int = 1
    alone: bool = False
    place: str = "local"
    place_address: str = "auto"

    def runs(self) -> list[PlannedRun]:
        """All runs in the order they are made.

        What drifts with time (a machine that warms up, a neighbour that wakes) must not fall on one arm. With a floor,
        every repeat begins with one of the baseline's two runs and ends with the other, in turn, and the arms between
        them begin one later in every repeat: a steady drift cancels out of arm less baseline, and shows in full in the
        A/A pair. Without one, all arms begin one later in every repeat.
        """
        planned = []
        for repeat in range(self.repeats):
            for arm in self._order(repeat):
                planned.append(PlannedRun(arm=arm.name, repeat=repeat, folder=f"r{repeat}-{_slug(arm.name)}"))
        return planned

    def _order(self, repeat: int) -> tuple[Arm, ...]:
        ends = tuple(arm for arm in self.arms if arm.baseline or arm.floor)
        if len(ends) != 2:
            return _turned(self.arms, repeat)
        between = _turned(tuple(arm for arm in self.arms if arm not in ends), repeat)
        first, last = ends if repeat % 2 == 0 else ends[::-1]
        return (first, *between, last)

    def alone_run(self) -> PlannedRun:
        """The baseline with nothing beside it, which shows what running side by side changes."""
        baseline = next(arm for arm in self.arms if arm.baseline)
        return PlannedRun(arm=baseline.name, repeat=0, folder=f"alone-{_slug(baseline.name)}")

    @property
    def served_model(self) -> str | None:
        """The name to ask servers for: the model's, where none is launched with it; None for the server's own."""
        return self.launch.model if all(arm.url is not None for arm in self.arms) else None

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def estimate_s(self, trace_s: float, engine: str) -> float:
        """About how long the experiment takes.

        Args:
            trace_s: length of the schedule in seconds, with time for the last answers.
            engine: name of the engine that is launched for arms without a URL.
        """
        from kvload.servers.engines.base import Adapter, known

        launch_s = (known(engine) or Adapter).start_estimate_s
        return sum(trace_s + (0.0 if self.arm(run.arm).url else launch_s) for run in self.runs())


def make_arms(
    methods: Sequence[str],
    urls: Mapping[str, str],
    *,
    baseline: str | None = None,
    floor: Floor = "again",
    perturbation: Sequence[str] = (),
    least: int = 2,
) -> tuple[Arm, ...]:
    """The arms of an experiment: each method and each server, the baseline, and the baseline again.

    The baseline is the arm named, else the first of ``none`` and ``auto`` among the methods, else the first arm.

    Args:
        methods, urls: servers to launch, and those that run already by their arms' names.
        baseline: the arm to compare with.
        floor: how the baseline is run beside the first time.
        perturbation: arguments of the engine that perturb the baseline.
        least: so many arms are needed.

    Raises:
        UsageError: fewer than ``least`` arms, a name twice, a baseline that is not among them, or one that cannot be
            perturbed since kvload does not launch it.
    """
    from kvload.servers.catalogue.asked import canonical

    methods = [canonical(method) for method in methods]
    names = [*methods, *urls]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the arm '{name}' is given twice", where="--method/--arm")
    if len(names) < least:
        words = "one arm is" if least == 1 else "two arms are"
        raise UsageError(
            f"at least {words} needed, not {len(names)}",
            where="--method/--arm",
            hint="for example --method none --method kivi-4",
        )
    base = baseline or next((name for name in methods if name in {"none", "auto"}), names[0])
    if base not in names:
        raise UsageError(f"the baseline '{base}' is not one of the arms: {', '.join(names)}", where="--baseline")
    arms = [Arm(name=name, method=None if name in urls else name, url=urls.get(name)) for name in names]
    arms = [msgspec.structs.replace(arm, baseline=arm.name == base) for arm in arms]
    arms.sort(key=lambda arm: not arm.baseline)
    if floor == "none":
        return tuple(arms)
    arms.insert(1, msgspec.structs.replace(arms[0], name=base + FLOOR_SUFFIX, baseline=False, floor=True))
    if floor == "perturb":
        if arms[0].method is None:
            raise UsageError(
                f"the baseline '{base}' is not launched by kvload, so that it cannot be given another dtype",
                where="--floor perturb",
                hint="launch it by --method, or start it in another dtype yourself and give it as an --arm",
            )
        arms.insert(
            2,
            msgspec.structs.replace(
                arms[0],
                name=base + PERTURBED_SUFFIX,
                baseline=False,
                perturbed=True,
                engine_args=tuple(perturbation),
            ),
        )
    return tuple(arms)


def perturbing_args(engine_args: Sequence[str]) -> tuple[str, ...]:
    """What gives a baseline another dtype than it has: the smallest change that moves greedy answers.

    float16 is neither of the two that engines choose by themselves for today's models, bfloat16 and float32.

    Args:
        engine_args: of all arms; a dtype among them is the one to differ from.
    """
    from kvload.servers.engines.arguments import flag_value

    own = flag_value(tuple(engine_args), "--dtype")
    return ("--dtype", "bfloat16" if own in {"float16", "half"} else "float16")


def _turned(arms: tuple[Arm, ...], by: int) -> tuple[Arm, ...]:
    turn = by % len(arms) if arms else 0
    return arms[turn:] + arms[:turn]


def arm_urls(arms: Sequence[str]) -> dict[str, str]:
    """Names and addresses of ``--arm`` options.

    Raises:
        UsageError: one is not ``NAME=http://HOST:PORT``.
    """
    urls: dict[str, str] = {}
    for text in arms:
        name, separator, url = text.partition("=")
        if not separator or not name:
            # the text may hold a key: it is not repeated
            raise UsageError("an arm is written NAME=http://HOST:PORT", where="--arm")
        if name in urls:
            raise UsageError(f"the arm '{name}' is given twice", where="--arm")
        urls[name] = Address.parse(url, where=f"--arm {name}").url
    return urls


def trace_digest(path: Path) -> str:
    """The SHA-256 of a trace's content, in hexadecimal digits.

    Raises:
        TraceError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror}", where=str(path)) from error


def save(plan: ExperimentPlan, out: Path) -> None:
    """Keep the plan in the experiment's folder.

    Raises:
        UsageError: the folder holds something else already.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(
            "the folder is not empty", where=f"--out {out}", hint=f"go on with it by --resume {out}, or choose another"
        )
    make_folder(out)
    write_bytes(out / PLAN_NAME, msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")


def load(out: Path) -> ExperimentPlan:
    """Read the plan of an experiment's folder.

    Raises:
        RunDirError: there is none, or it does not parse.
    """
    path = out / PLAN_NAME
    try:
        return msgspec.convert(_current(msgspec.json.decode(path.read_bytes())), ExperimentPlan)
    except OSError as error:
        raise RunDirError(f"not an experiment's folder: {error.strerror}", where=str(path)) from error
    except msgspec.MsgspecError as error:
        raise RunDirError(f"the plan does not parse: {error}", where=str(path)) from error


def _current(plan: Any) -> Any:
    """A plan as it is written today, of one of version 0.1.0, which kept all options of its runs in one flat table."""
    if not isinstance(plan, dict) or not isinstance(plan.get("replay"), dict):
        return plan
    given = plan.pop("replay")
    own = {name: given.pop(name) for name in ("slo", "max_model_len", "calibrate") if name in given}
    sending = {name: given.pop(name) for name in Sending.__dataclass_fields__ if name in given}
    return plan | {"run": own | {"schedule": given, "sending": sending}}


def is_complete(folder: Path) -> bool:
    """Whether a run folder holds a run that came to its natural end."""
    try:
        return not RunDir.open(folder).manifest().partial
    except RunDirError:
        return False


def set_aside(folder: Path) -> Path | None:
    """Rename an unfinished run's folder so that it can be made again; nothing measured is deleted."""
    if not folder.exists():
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.unfinished-{number}")).exists():
        number += 1
    return folder.rename(aside)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=_-]+", "-", name).strip("-")
