"""What ``kvload sweep`` and ``kvload capacity`` do with a plan: make its runs, show what they came to."""

import json
import shlex
import shutil
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvload.errors import ExitStatus, UsageError

if TYPE_CHECKING:
    from kvload.cli.options import BesideFlags
    from kvload.experiment.forecast import Forecast
    from kvload.experiment.options import RunOptions
    from kvload.experiment.plan import Arm
    from kvload.experiment.slots import Slot
    from kvload.experiment.sweep import SweepRunner
    from kvload.experiment.sweep_plan import SweepPlan
    from kvload.servers.engines.base import LaunchRequest
    from kvload.servers.launcher import LaunchEvent
    from kvload.workloads.run.live import Progress


_LONGEST_WARM_UP_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How a sweep is shown: as JSON, by other limits (seconds by metric) or another price than the plan's."""

    as_json: bool = False
    limits: Mapping[str, float] | None = None
    price_per_gpu_hour: float | None = None


def parse_loads(rates: str | None, concurrency: str | None) -> tuple[Literal["rate", "concurrency"], tuple[float, ...]]:
    """Axis and levels of ``--rates`` and ``--concurrency``; no levels for a search.

    Raises:
        UsageError: both are given, or one is not a list of numbers above 0.
    """
    if rates is not None and concurrency is not None:
        raise UsageError("give one of them: a closed loop has no rate", where="--rates, --concurrency")
    flag, text = ("--concurrency", concurrency) if concurrency is not None else ("--rates", rates or "auto")
    axis: Literal["rate", "concurrency"] = "rate" if concurrency is None else "concurrency"
    if text == "auto":
        return axis, ()
    try:
        levels = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"'{text}' is not a list of numbers", where=flag, hint=f"for example {flag} 1,2,4,8") from None
    if not all(0 < level < float("inf") for level in levels):
        raise UsageError("a load is a number above 0", where=flag)
    if axis == "concurrency" and any(level != int(level) for level in levels):
        raise UsageError("requests in flight are whole", where=flag)
    return axis, tuple(levels)


def plan_of(
    trace: str,
    *,
    methods: list[str],
    arms: list[str],
    baseline: str | None,
    axis: Literal["rate", "concurrency"],
    levels: tuple[float, ...],
    search: Mapping[str, Any],
    duration: str,
    warm_up: str,
    launch: "LaunchRequest",
    run: "RunOptions",
    spread: tuple[str, ...] = (),
    **given: Any,
) -> "SweepPlan":
    """The plan of what was asked on the command line.

    Raises:
        UsageError, TraceError: something cannot be used.
    """
    from kvload.experiment.plan import arm_urls, make_arms, trace_digest
    from kvload.experiment.sweep_plan import SweepPlan
    from kvload.servers.lifecycle.masking import mask_command
    from kvload.units import parse_duration
    from kvload.workloads.schedule.build import count_requests
    from kvload.workloads.traces.samples import trace_path

    if not run.slo:
        raise UsageError("say which limits count", where="--slo", hint="--slo ttft=500ms,tpot=50ms")
    if (spread or given.get("place", "local") != "local") and arms:
        raise UsageError(
            f"the server of the arm '{arms[0].partition('=')[0]}' runs already: it cannot be given a GPU",
            where="--gpus, --arm",
            hint="leave --gpus out, or launch all arms by --method",
        )
    path = trace_path(trace)
    digest = trace_digest(path)
    held_s = parse_duration(duration, where="--duration")
    made = make_arms(methods, arm_urls(arms), baseline=baseline, floor="none", least=1)
    return SweepPlan(
        trace=str(path),
        trace_sha256=digest,
        rows=count_requests(path, run.schedule),
        arms=made,
        axis=axis,
        levels=levels,
        duration_s=held_s,
        warm_up_s=min(held_s / 4, _LONGEST_WARM_UP_S)
        if warm_up == "auto"
        else parse_duration(warm_up, where="--warm-up"),
        launch=launch,
        run=run,
        spread=spread,
        command=shlex.join(["kvload", *mask_command(sys.argv[1:])]),
        **search,
        **given,
    )


def make(
    plan: "SweepPlan",
    out: Path | None,
    headers: Mapping[str, str],
    shown: Shown,
    *,
    dry_run: bool,
    is_new: bool,
) -> int:
    """Make what is missing of a sweep, then show it.

    Raises:
        UsageError: it cannot be carried out; nothing has run.
        KeyboardInterrupt: the user stopped it; the folder can be gone on with.
    """
    from kvload.cli.replay_display import Display
    from kvload.cli.server_readings import gpus_of_its_own, slots_for
    from kvload.experiment import sweep as sweeps
    from kvload.experiment import sweep_plan
    from kvload.experiment.forecast import left_text
    from kvload.experiment.replay import Listener
    from kvload.experiment.slots import remarks
    from kvload.experiment.sweep_results import points_of
    from kvload.servers.launcher import place_of

    sweep_plan.check(plan)
    place = None if plan.place == "local" else place_of(plan.place, plan.place_address)
    slots = slots_for(plan.spread, plan.gpus or 1, plan.run.sending.workers, place)
    folder = out or Path("runs") / f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-sweep"
    launches = not dry_run and place is None and any(arm.method is not None for arm in plan.arms)
    lock = threading.RLock()
    with gpus_of_its_own(launches, slots, plan.launch, plan.gpus or 1, folder), Display() as display:
        if is_new and not dry_run:
            sweep_plan.save(plan, folder)
            shutil.copyfile(plan.trace, sweep_plan.trace_copy(plan, folder))

        def notice(text: str) -> None:
            with lock:
                display.notice(text)

        def watcher_of(slot: "Slot | None") -> sweeps.SweepWatcher:
            """Who is told of the whole sweep, or of what goes on in one slot."""
            where = f"{slot.name}: " if slot is not None else ""

            def on_level(arm: "Arm", level: float, repeat: int, forecast: "Forecast") -> None:
                unit = "/s" if plan.axis == "rate" else " in flight"
                again = f", repeat {repeat + 1} of {plan.repeats}" if plan.repeats > 1 else ""
                if slot is None:
                    display.within(lambda: f"{arm.name} at {level:g}{unit}, {left_text(forecast)}")
                notice(f"{where}{arm.name} at {level:g}{unit}{again}, {left_text(forecast)}{' there' if slot else ''}")

            def on_launch(event: "LaunchEvent") -> None:
                if event.kind in {"note", "ready"}:
                    notice(f"  {where}{event.text}")

            def on_progress(progress: "Progress") -> None:
                with lock:
                    display.progress(progress, None if slot is None else slot.name)

            return sweeps.SweepWatcher(
                on_level=on_level,
                on_point=lambda point: notice(f"  {where}{point.arm}: {point.met} of {point.sent} within the limits"),
                on_failed=lambda arm, error: notice(f"{where}{arm.name} failed, the others go on: {error}"),
                on_launch=on_launch,
                listener=Listener(on_progress, lambda text: notice(f"  {where}{text}")),
                for_slot=watcher_of,
            )

        runner = sweeps.SweepRunner(plan, folder, watcher_of(None), headers=headers, slots=slots, place=place)
        _announce(plan, runner.forecast.left_s / max(len(slots), 1), folder, display.notice)
        for line in [*_places(runner), *remarks(slots, plan.spread, plan.gpus or 1)]:
            display.notice(line)
        if dry_run:
            return ExitStatus.OK
        try:
            failed = runner.run()
        except KeyboardInterrupt:
            kept = len(points_of(plan, folder))
            display.notice(
                f"interrupted: the {kept} levels that were finished are kept in {folder};"
                f" go on with kvload sweep --resume {folder}, look at them with kvload sweep {folder}"
            )
            raise
    status = show(plan, folder, shown, failed=failed)
    return ExitStatus.SERVER if failed else status


def replaced(plan: "SweepPlan", flags: "BesideFlags", gpus: str | None) -> "SweepPlan":
    """The plan of a folder, gone on with as it began or, where asked, on other GPUs, or one walk after the other.

    Raises:
        UsageError: these GPUs cannot be used, or those of the folder cannot any more.
    """
    import msgspec

    from kvload.cli.server_readings import resumed

    place = (plan.place, plan.place_address)
    was = resumed(plan.launch, plan.spread, plan.gpus or 1, place, flags, gpus, plan.arms)
    placed = was.place != "local" or bool(was.gpus or was.launch.gpus)
    return msgspec.structs.replace(
        plan,
        launch=was.launch,
        spread=was.gpus,
        gpus=was.per_arm if placed or flags.per_arm else plan.gpus,
        place=was.place,
        place_address=was.address,
    )


def show(plan: "SweepPlan", folder: Path, shown: Shown, *, failed: Mapping[str, str] | None = None) -> int:
    """Print a sweep and write its files into its folder."""
    from kvload.analysis.report import html_sweep, sweep_json, sweep_plot, sweep_terminal
    from kvload.experiment.sweep_results import results
    from kvload.terminal import console

    found = results(plan, folder, failed=failed, slo_limits=shown.limits, price_per_gpu_hour=shown.price_per_gpu_hour)
    as_dict = sweep_json.as_dict(found)
    if shown.as_json:
        json.dump(as_dict, sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        sweep_terminal.render(found, console())
    text = json.dumps(as_dict, indent=2, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    sweep_json.write_csv(found, folder / "points.csv")
    (folder / "sweep.svg").write_text(sweep_plot.picture(found), encoding="utf-8")
    (folder / "sweep.html").write_text(html_sweep.render(found), encoding="utf-8")
    print(f"wrote {folder / 'sweep.html'}, sweep.svg, results.json and points.csv", file=sys.stderr)
    return ExitStatus.OK


def _places(runner: "SweepRunner") -> list[str]:
    """Where walks that go on side by side are going to be made; nothing of others."""

    def named(arm: "Arm", repeat: int) -> str:
        return f"{arm.name} (repeat {repeat + 1})" if runner.plan.repeats > 1 else arm.name

    return [
        f"  on {slot.name}: {', '.join(named(*walk) for walk in walks) or 'nothing'}"
        for slot, walks in zip(runner.slots, runner.queues(), strict=True)
    ]


def _announce(plan: "SweepPlan", left_s: float, folder: Path, say: Any) -> None:
    from kvload.experiment.forecast import time_text

    unit = "requests/s" if plan.axis == "rate" else "in flight"
    loads = ", ".join(f"{level:g}" for level in plan.levels) or f"searched from {plan.start:g} on"
    names = ", ".join(arm.name for arm in plan.arms)
    cost = ""
    if plan.gpus:
        hours = left_s / 3600 * plan.gpus
        cost = f", {hours:.2g} GPU-hours"
        if plan.price_per_gpu_hour is not None:
            cost += f" (${hours * plan.price_per_gpu_hour:.2f})"
    say(f"{names}; {unit}: {loads}; into {folder}")
    say(f"about {time_text(left_s)}{cost}, and the time the last answers of each run take")


def gpus_of_a_server(methods: list[str], launch: "LaunchRequest", asked: int | None, per_arm: int) -> int | None:
    """GPUs of one server, for the cost; None where that is not known, or there is none.

    Args:
        methods: those that are launched.
        launch: the server.
        asked: what the user says.
        per_arm: as many as it is spread over.
    """
    from kvload.servers.host.machine import gpus

    if asked is not None:
        return asked
    return per_arm if methods and (gpus() or launch.gpus) else None
