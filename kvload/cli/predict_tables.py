"""What ``kvload predict`` prints."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kvload.cli.predict_words import (
    BEYOND,
    HITS,
    TOO_LARGE,
    beyond,
    digits,
    in_units,
    load_rate,
    new_table,
    round_percent,
    say,
    show,
    span,
    there_are,
    times_text,
)

if TYPE_CHECKING:
    from kvload.analysis.prediction.errors import HeldOut
    from kvload.analysis.prediction.points import StageErrors
    from kvload.experiment.prediction.capacity import Capacity
    from kvload.experiment.prediction.forecast import Prediction
    from kvload.experiment.prediction.truth import TruthErrors
    from kvload.step_model import StepModels

SHORT_S = 60.0
"""Below this a load ends before the queues of a full server show."""

FEWEST_DRAWS = 9
"""Simulations from which on a tenth of them can lie beyond each end of an interval."""


def print_models(models: "StepModels") -> None:
    """One line a method: what a step costs, and how well that fits."""
    table = new_table(
        "method",
        "steps",
        "a step",
        "with prompts",
        "launched",
        "a decode",
        "1k context",
        "1k prompt",
        "error",
        "other runs",
    )
    for model in models.models:
        step, beside, decode, context, prompt, _, launch = model.coefficients
        table.add_row(
            model.method,
            f"{model.steps:,}",
            f"{step * 1e3:.2f} ms",
            f"+{beside * 1e3:.1f} ms",
            f"{launch * 1e3:.1f} ms" if launch else "-",
            f"{decode * 1e6:.0f} us",
            f"{context * 1e9:.1f} us",
            f"{prompt * 1e6:.1f} ms",
            f"{model.error_p50:.1%}, p90 {model.error_p90:.1%}",
            f"{', '.join(f'{part:.1%}' for part in (model.spread.decode, model.spread.prompt, model.spread.launch))}"
            f"{'' if model.spread.runs else ' (assumed)'}",
        )
    show(table)
    say(
        "error: of stretches of a few steps, in-sample; other runs: how far a run that was left out lay from the others"
    )
    say("(its steps without prompts, what prompts add, and how long steps with prompts take to be launched)")


def print_stage_errors(errors: Sequence["StageErrors"]) -> None:
    """How well each stage is foretold by points that have another batch size or length."""
    table = new_table("method", "stage", "points", "one batch out", "one length out", "far corner")
    for each in errors:
        cells = [_accuracy(found) for found in (each.by_batch, each.by_length, each.corner)]
        table.add_row(each.method, each.stage, str(each.points), *cells)
    show(table)
    say("1 less the mean relative error; in brackets the 90th percentile of errors; the corner from near points")


def print_truth(found: Sequence["TruthErrors"]) -> None:
    """How the steps of a log are foretold, by stage."""
    table = new_table(
        "method", "stage", "steps", "model from chunks", "all steps", "one batch out", "one length out", "far corner"
    )
    for each in found:
        out = each.held_out
        total = "-" if each.total is None else f"{100 * (math.exp(each.total) - 1):+.1f} %"
        cells = [_accuracy(error) for error in (out.by_batch, out.by_length, out.corner)]
        table.add_row(out.method, out.stage, f"{out.points:,}", _accuracy(each.model), total, *cells)
    show(table)
    say("1 less the mean relative error; in brackets the 90th percentile of errors; all steps: their total time")


def _accuracy(found: "HeldOut | None") -> str:
    return "-" if found is None else f"{1 - found.mape:.1%} ({found.p90:.1%})"


def print_predictions(
    found: Sequence["Prediction"], slo: Mapping[str, float], replicas: int, draws: int = FEWEST_DRAWS
) -> None:
    """A method and rate with its interval below it, then beside the baseline, then what to keep in mind."""
    share = "attainment" if slo else "tokens_per_s"
    columns = [_latency(found, "ttft.p50", "TTFT p50"), _latency(found, "ttft.p99", "p99")]
    columns += [_latency(found, "tpot.mean", "TPOT"), (share, *(("meet SLO, %", 100.0) if slo else ("tokens/s", 1.0)))]
    table = new_table("req/s", "method", *(heading for _, heading, _ in columns), "goodput/s")
    for each in found:
        middle = [digits(each.central[name] * scale) for name, _, scale in columns]
        table.add_row(load_rate(each.rate_rps), each.method, *middle, digits(each.central["goodput"]))
        if draws:
            ends = [(each.low[name] * scale, each.high[name] * scale) for name, _, scale in columns]
            table.add_row("", "", *(f"{digits(low, 2)} to {digits(high, 2)}" for low, high in ends), style="dim")
    show(table)
    servers = "one server" if replicas == 1 else f"{replicas} servers"
    below = f"; below each figure {_interval(draws)}" if draws else ""
    say(f"{servers}, simulated{below}. No server was asked.")
    beside = [each for each in found if each.ratio]
    if beside:
        table = new_table("req/s", "method", f"E2E mean, times {found[0].method}'s", "goodput, times")
        for each in beside:
            cells = [times_text(each.ratio[name]) for name in ("e2e.mean", "goodput")]
            table.add_row(load_rate(each.rate_rps), each.method, *cells)
        say("")
        show(table)
    say(f"prefix hits: {HITS[found[0].hits]}")
    for note in _notes(found):
        say(note)


def _interval(draws: int) -> str:
    if draws >= FEWEST_DRAWS:
        return "the middle 80 % of what it may be"
    return f"what {draws} simulations span, too few for the middle 80 % ({FEWEST_DRAWS} are enough)"


def print_capacities(
    found: Sequence["Capacity"], slo: Mapping[str, float], target: float, replicas: int, draws: int = FEWEST_DRAWS
) -> None:
    """What each method carries, and its ratio to the baseline's."""
    table = new_table("method", "carries, req/s", f"times {found[0].method}'s", "the trace keeps it up for")
    for each in found:
        ratio = "-" if each.ratio is None else times_text(each.ratio)
        between = f" ({_rate(each.low)} to {_rate(each.high)})" if draws else ""
        carried = _rate(each.rate_rps) + between
        table.add_row(each.method, carried, ratio, "-" if not each.held_s else f"{digits(each.held_s)} s")
    show(table)
    limits = ", ".join(f"{name.upper()} {in_units(limit)}" for name, limit in slo.items())
    servers = "one server" if replicas == 1 else f"{replicas} servers"
    say(f"carries: the highest rate at which {target:.0%} of the requests meet {limits}; {servers}, simulated;")
    say(f"in brackets {_interval(draws)}. No server was asked." if draws else "No server was asked.")
    idle = [each.method for each in found if not each.rate_rps]
    if idle:
        say(f"{', '.join(idle)}: even one at a time, fewer than {target:.0%} of these requests meet the limits")
    for each in found:
        if each.too_large:
            say(f"{each.method}: {there_are(each.too_large)} {TOO_LARGE}")
        for words in beyond(each.outside):
            say(f"{each.method}: outside what the model knows at {_rate(each.rate_rps)}/s: {words}")
    short = [each.method for each in found if 0 < each.held_s < SHORT_S]
    if short:
        say(f"so short a load hides how queues grow ({', '.join(short)}): take the trace several times, --repeat 10")


def _rate(rate_rps: float) -> str:
    if math.isinf(rate_rps):
        return "no end"
    return digits(rate_rps) if rate_rps else "none"


def _notes(found: Sequence["Prediction"]) -> list[str]:
    """What to keep in mind, a line for each method and matter."""
    notes = []
    for method in dict.fromkeys(each.method for each in found):
        of = [each for each in found if each.method == method]
        busy = [each for each in of if each.near_saturation]
        if busy:
            share = span([each.busy for each in busy], round_percent)
            notes.append(
                f"{method}: near saturation at {_rates(busy)} ({share} busy): waiting times hang on small errors "
                "of the step time"
            )
        for name, what in BEYOND.items():
            beyond = [each for each in of if name in each.outside]
            if beyond:
                share = span([each.outside[name] for each in beyond], round_percent)
                notes.append(
                    f"{method}: outside what the model knows at {_rates(beyond)}: {share} {what} than were measured"
                )
        cached = [each for each in of if each.cached]
        if cached:
            share = span([each.cached for each in cached], round_percent)
            notes.append(f"{method}: the prefix cache held {share} of the prompts' tokens at {_rates(cached)}")
        refused = [each for each in of if each.refused]
        if refused:
            notes.append(f"{method}: {there_are(refused[0].refused)} {TOO_LARGE}")
        preempted = [each for each in of if each.preemptions]
        if preempted:
            notes.append(
                f"{method}: {', '.join(f'{each.preemptions:,} at {_rates([each])}' for each in preempted)} preempted"
            )
    return notes


def _rates(of: Sequence["Prediction"]) -> str:
    """The loads that are meant, as in ``4/s`` or ``4 to 20/s``."""
    return span([each.rate_rps for each in of], load_rate) + "/s"


def _latency(found: Sequence["Prediction"], name: str, heading: str) -> tuple[str, str, float]:
    """A column of times: the figure's name, the heading with its unit, and that many of the unit in a second."""
    seconds = max((each.high[name] for each in found if not math.isnan(each.high[name])), default=0.0) >= 1
    return (name, f"{heading}, s", 1.0) if seconds else (name, f"{heading}, ms", 1e3)
