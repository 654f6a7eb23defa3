"""What ``kvload predict`` and ``kvload plan`` print."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from kvload.analysis.prediction.errors import HeldOut
    from kvload.analysis.prediction.points import StageErrors
    from kvload.experiment.prediction.capacity import Capacity
    from kvload.experiment.prediction.cells import Ratio
    from kvload.experiment.prediction.check import Checked
    from kvload.experiment.prediction.forecast import Prediction
    from kvload.experiment.prediction.plan import Plan
    from kvload.experiment.prediction.truth import TruthErrors
    from kvload.step_model import StepModels

SHORT_S = 60.0
"""Below this a load ends before the queues of a full server show."""

LEFT = {"method", "run", "figure", "stage", "in the run", "method's figures from"}
"""Columns of words."""

HITS = {
    "counted": "as counted by the server",
    "reckoned": "reckoned from block ids",
    "off": "none, the run's prefix cache was off",
    "unknown": "none known",
}
"""How it is known what a prefix cache held."""


def print_models(models: "StepModels") -> None:
    """One line a method: what a step costs, and how well that fits."""
    table = _table(
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
    _print(table)
    _say(
        "error: of stretches of a few steps, in-sample; other runs: how far a run that was left out lay from the others"
    )
    _say("(its steps without prompts, what prompts add, and how long steps with prompts take to be launched)")


def print_stage_errors(errors: Sequence["StageErrors"]) -> None:
    """How well each stage is foretold by points that have another batch size or length."""
    table = _table("method", "stage", "points", "one batch out", "one length out", "far corner")
    for each in errors:
        cells = [_accuracy(found) for found in (each.by_batch, each.by_length, each.corner)]
        table.add_row(each.method, each.stage, str(each.points), *cells)
    _print(table)
    _say("1 less the mean relative error; in brackets the 90th percentile of errors; the corner from near points")


def print_truth(found: Sequence["TruthErrors"]) -> None:
    """How the steps of a log are foretold, by stage."""
    table = _table(
        "method", "stage", "steps", "model from chunks", "all steps", "one batch out", "one length out", "far corner"
    )
    for each in found:
        out = each.held_out
        total = "-" if each.total is None else f"{100 * (math.exp(each.total) - 1):+.1f} %"
        cells = [_accuracy(error) for error in (out.by_batch, out.by_length, out.corner)]
        table.add_row(out.method, out.stage, f"{out.points:,}", _accuracy(each.model), total, *cells)
    _print(table)
    _say("1 less the mean relative error; in brackets the 90th percentile of errors; all steps: their total time")


def _accuracy(found: "HeldOut | None") -> str:
    return "-" if found is None else f"{1 - found.mape:.1%} ({found.p90:.1%})"


def print_predictions(found: Sequence["Prediction"], slo: Mapping[str, float], replicas: int) -> None:
    """A method and rate with its interval below it, then beside the baseline, then what to keep in mind."""
    share = "attainment" if slo else "tokens_per_s"
    columns = [_latency(found, "ttft.p50", "TTFT p50"), _latency(found, "ttft.p99", "p99")]
    columns += [_latency(found, "tpot.mean", "TPOT"), (share, *(("meet SLO, %", 100.0) if slo else ("tokens/s", 1.0)))]
    table = _table("req/s", "method", *(heading for _, heading, _ in columns), "goodput/s")
    for each in found:
        middle = [_digits(each.central[name] * scale) for name, _, scale in columns]
        table.add_row(_digits(each.rate_rps), each.method, *middle, _digits(each.central["goodput"]))
        if each.low != each.high:
            ends = [(each.low[name] * scale, each.high[name] * scale) for name, _, scale in columns]
            table.add_row("", "", *(f"{_digits(low, 2)} to {_digits(high, 2)}" for low, high in ends), style="dim")
    _print(table)
    servers = "one server" if replicas == 1 else f"{replicas} servers"
    _say(f"{servers}, simulated; below each figure the middle 80 % of what it may be. No server was asked.")
    beside = [each for each in found if each.ratio]
    if beside:
        table = _table("req/s", "method", f"E2E mean, times {found[0].method}'s", "goodput, times")
        for each in beside:
            cells = [_times(each.ratio[name]) for name in ("e2e.mean", "goodput")]
            table.add_row(_digits(each.rate_rps), each.method, *cells)
        _say("")
        _print(table)
    _say(f"prefix hits: {HITS[found[0].hits]}")
    for note in _notes(found):
        _say(note)


def print_capacities(found: Sequence["Capacity"], slo: Mapping[str, float], target: float, replicas: int) -> None:
    """What each method carries, and its ratio to the baseline's."""
    table = _table("method", "carries, req/s", f"times {found[0].method}'s", "the trace keeps it up for")
    for each in found:
        ratio = "-" if each.ratio is None else _times(each.ratio)
        carried = f"{_rate(each.rate_rps)} ({_rate(each.low)} to {_rate(each.high)})"
        table.add_row(each.method, carried, ratio, "-" if not each.held_s else f"{_digits(each.held_s)} s")
    _print(table)
    limits = ", ".join(f"{name.upper()} {_time(limit)}" for name, limit in slo.items())
    servers = "one server" if replicas == 1 else f"{replicas} servers"
    _say(f"carries: the highest rate at which {target:.0%} of the requests meet {limits}; {servers}, simulated;")
    _say("in brackets the middle 80 % of what it may be. No server was asked.")
    idle = [each.method for each in found if not each.rate_rps]
    if idle:
        _say(f"{', '.join(idle)}: even one at a time, fewer than {target:.0%} of these requests meet the limits")
    for each in found:
        if each.too_large:
            _say(f"{each.method}: {_are(each.too_large)} larger than the whole cache")
    short = [each.method for each in found if 0 < each.held_s < SHORT_S]
    if short:
        _say(f"so short a load hides how queues grow ({', '.join(short)}): take the trace several times, --repeat 10")


def _are(requests: int) -> str:
    return f"{requests:,} requests are" if requests != 1 else "1 request is"


def _rate(rate_rps: float) -> str:
    if math.isinf(rate_rps):
        return "no end"
    return _digits(rate_rps) if rate_rps else "none"


def print_checks(found: "Checked") -> None:
    """Every cell, and the worst of each figure beside what equal runs differ by; then ratios to the baseline."""
    table = _table("run", "method", "figure", "measured", "predicted", "80 %", "error", "busy")
    for cell in found.cells:
        share = cell.figure == "attainment"
        table.add_row(
            cell.run,
            cell.method,
            cell.figure,
            f"{cell.measured:.1%}" if share else _time(cell.measured),
            f"{cell.predicted:.1%}" if share else _time(cell.predicted),
            "in" if cell.held else "out",
            f"{100 * cell.error:+.1f} points" if share else f"{cell.error:+.1%}",
            f"{cell.busy:.0%}",
        )
    _print(table)
    held = sum(cell.held for cell in found.cells)
    _say(f"{held} of {len(found.cells)} cells lie in their 80 % interval")
    for hits in sorted(set(found.hits.values())):
        runs = [run for run, known in found.hits.items() if known == hits]
        _say(f"prefix hits: {HITS[hits]}" + ("" if len(runs) == len(found.hits) else f" ({', '.join(runs)})"))
    table = _table("figure", "mean error", "worst", "in the run", "equal runs")
    for figure in dict.fromkeys(cell.figure for cell in found.cells):
        of = [cell for cell in found.cells if cell.figure == figure]
        worst = max(of, key=lambda cell: abs(cell.error))
        mean = sum(abs(cell.error) for cell in of) / len(of)
        again = found.again.get(figure)
        apart = "none" if again is None else f"{_error(figure, sum(again) / len(again))} apart ({len(again)})"
        table.add_row(figure, _error(figure, mean), _error(figure, worst.error, sign=True), worst.run, apart)
    _print(table)
    if found.capacities:
        table = _table("method", "carries, req/s", "predicted", "error")
        for each in found.capacities:
            predicted, low, high = (
                f"< {each.slowest:.3g}" if rate == 0 else f"> {each.fastest:.3g}" if math.isinf(rate) else _digits(rate)
                for rate in (each.predicted, each.low, each.high)
            )
            error = "-" if math.isnan(each.error) else f"{each.error:+.1%}"
            table.add_row(each.method, _digits(each.measured), f"{predicted} ({low} to {high})", error)
        _print(table)
        _say("carries: where the share of requests within the limits crosses 90 %, between the two rates next to it")
    if found.ratios:
        _print_ratios(found.ratios)


def _print_ratios(ratios: Sequence["Ratio"]) -> None:
    from kvload.experiment.prediction.cells import guesses

    table = _table("run", "method", "figure", "times baseline", "predicted", "80 %")
    for each in ratios:
        inside = "in" if each.held else "out"
        cells = f"{each.true:.2f}", f"{each.predicted:.2f} ({each.low:.2f} to {each.high:.2f})"
        table.add_row(each.run, each.method, each.figure, *cells, inside)
    _print(table)
    moving = [each for each in ratios if each.moves]
    still = [each for each in ratios if not each.moves]
    _say(f"{len(moving)} of {len(ratios)} ratios move by 5 % or more; of the others {_ones(still)} intervals hold 1")
    found = guesses(ratios)
    figures = list(dict.fromkeys(figure for each in found for figure in each.error))
    table = _table("method's figures from", "skill", "sign right", *figures)
    for guess in found:
        skill, sign = guess.skill.skill, guess.skill.sign_right
        errors = [_error(name, guess.error[name]) if name in guess.error else "-" for name in figures]
        table.add_row(
            guess.name, "-" if skill is None else f"{skill:.2f}", "-" if sign is None else f"{sign:.0%}", *errors
        )
    _print(table)
    _say("skill: 1 less the squared log error of the moving ratios, relative to that of 'no change'; then mean errors")


def _ones(still: Sequence["Ratio"]) -> str:
    return f"{sum(each.low <= 1 <= each.high for each in still)} of {len(still)}"


def _error(figure: str, value: float, *, sign: bool = False) -> str:
    text = f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"
    return text + (" points" if figure == "attainment" else " %")


def print_plans(found: Sequence["Plan"], gpu_hour: float | None, gpus: int) -> None:
    """One line a method."""
    heading = ["method", "servers", "meets SLO", "one fewer fails at", "GPU-hours"]
    table = _table(*heading, *(["cost", "per million tokens"] if gpu_hour is not None else []))
    for each in found:
        hours = each.hours * gpus
        row = [
            each.method,
            "too few" if each.servers is None else str(each.servers),
            f"{each.attainment:.1%}",
            each.reason,
            f"{hours:.3g}",
        ]
        if gpu_hour is not None:
            row += [f"{hours * gpu_hour:.3g}", f"{hours * gpu_hour / each.tokens * 1e6:.3g}" if each.tokens else "-"]
        table.add_row(*row)
    _print(table)
    _say("simulated; memory: no room in the cache, compute: servers busy or steps too long, tail: bursts")
    _say(f"prefix hits: {HITS[found[0].hits]}")
    for each in found:
        if each.cached:
            _say(f"{each.method}: the prefix cache held {_round_percent(each.cached)} of the prompts' tokens")


def _notes(found: Sequence["Prediction"]) -> list[str]:
    """What to keep in mind, a line for each method and matter."""
    notes = []
    for method in dict.fromkeys(each.method for each in found):
        of = [each for each in found if each.method == method]
        busy = [each for each in of if each.near_saturation]
        if busy:
            share = _span([each.busy for each in busy], _round_percent)
            notes.append(
                f"{method}: near saturation at {_rates(busy)} ({share} busy): waiting times hang on small errors "
                "of the step time"
            )
        for name, what in (("decodes", "more requests at once"), ("context", "longer contexts")):
            beyond = [each for each in of if name in each.outside]
            if beyond:
                share = _span([each.outside[name] for each in beyond], _round_percent)
                notes.append(
                    f"{method}: outside what the model knows at {_rates(beyond)}: {share} of the steps have {what} "
                    "than were measured"
                )
        cached = [each for each in of if each.cached]
        if cached:
            share = _span([each.cached for each in cached], _round_percent)
            notes.append(f"{method}: the prefix cache held {share} of the prompts' tokens at {_rates(cached)}")
        refused = [each for each in of if each.refused]
        if refused:
            notes.append(f"{method}: {_are(refused[0].refused)} larger than the whole cache")
        preempted = [each for each in of if each.preemptions]
        if preempted:
            notes.append(
                f"{method}: {', '.join(f'{each.preemptions:,} at {_rates([each])}' for each in preempted)} preempted"
            )
    return notes


def _rates(of: Sequence["Prediction"]) -> str:
    """The loads that are meant, as in ``4/s`` or ``4 to 20/s``."""
    return _span([each.rate_rps for each in of], _digits) + "/s"


def _span(values: Sequence[float], form: Callable[[float], str]) -> str:
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def _latency(found: Sequence["Prediction"], name: str, heading: str) -> tuple[str, str, float]:
    """A column of times: the figure's name, the heading with its unit, and that many of the unit in a second."""
    seconds = max((each.high[name] for each in found if not math.isnan(each.high[name])), default=0.0) >= 1
    return (name, f"{heading}, s", 1.0) if seconds else (name, f"{heading}, ms", 1e3)


def _digits(value: float, digits: int = 3) -> str:
    """So many significant digits, and never an exponent."""
    if math.isnan(value):
        return "-"
    whole = abs(value) >= 10**digits or (digits == 2 and abs(value) >= 10)
    return f"{value:,.0f}" if whole else f"{value:.{digits}g}"


def _round_percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _time(value_s: float) -> str:
    """Three digits, in the unit that suits them."""
    return f"{value_s * 1e3:.3g} ms" if value_s < 1 else f"{value_s:.3g} s"


def _times(ratio: tuple[float, float, float]) -> str:
    return f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"


def _table(*headings: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in LEFT else "right")
    return table


def _print(table: "Table") -> None:
    from kvload.terminal import console

    console().print(table)


def _say(text: str) -> None:
    from kvload.terminal import console

    console().print(text)
