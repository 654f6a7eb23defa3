"""What ``kvload predict check`` prints."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvload.cli.predict_words import BEYOND, HITS, digits, in_units, new_table, round_percent, say, show, span

if TYPE_CHECKING:
    from kvload.experiment.prediction.cells import Ratio
    from kvload.experiment.prediction.check import Checked


def print_checks(found: "Checked") -> None:
    """Every cell, and the worst of each figure beside what equal runs differ by; then ratios to the baseline."""
    table = new_table("run", "method", "figure", "measured", "predicted", "80 %", "error", "busy")
    for cell in found.cells:
        share = cell.figure == "attainment"
        table.add_row(
            cell.run,
            cell.method,
            cell.figure,
            f"{cell.measured:.1%}" if share else in_units(cell.measured),
            f"{cell.predicted:.1%}" if share else in_units(cell.predicted),
            "in" if cell.held else "out",
            f"{100 * cell.error:+.1f} points" if share else f"{cell.error:+.1%}",
            f"{cell.busy:.0%}",
        )
    show(table)
    held = sum(cell.held for cell in found.cells)
    say(f"{held} of {len(found.cells)} cells lie in their 80 % interval")
    for hits in sorted(set(found.hits.values())):
        runs = [run for run, known in found.hits.items() if known == hits]
        say(f"prefix hits: {HITS[hits]}" + ("" if len(runs) == len(found.hits) else f" ({', '.join(runs)})"))
    for run, notes in found.notes.items():
        for note in notes:
            say(f"{run}: {note}")
    for name, what in BEYOND.items():
        shares = [outside[name] for outside in found.outside.values() if name in outside]
        if shares:
            where = f"{len(shares)} of {len(found.outside)} runs"
            say(f"outside what the model knows in {where}: {span(shares, round_percent)} {what} than were measured")
    table = new_table("figure", "mean error", "worst", "in the run", "equal runs")
    for figure in dict.fromkeys(cell.figure for cell in found.cells):
        of = [cell for cell in found.cells if cell.figure == figure]
        worst = max(of, key=lambda cell: abs(cell.error))
        mean = sum(abs(cell.error) for cell in of) / len(of)
        again = found.again.get(figure)
        apart = "none" if again is None else f"{_error(figure, sum(again) / len(again))} apart ({len(again)})"
        table.add_row(figure, _error(figure, mean), _error(figure, worst.error, sign=True), worst.run, apart)
    show(table)
    if found.capacities:
        table = new_table("method", "carries, req/s", "predicted", "error")
        for each in found.capacities:
            predicted, low, high = (
                f"< {each.slowest:.3g}" if rate == 0 else f"> {each.fastest:.3g}" if math.isinf(rate) else digits(rate)
                for rate in (each.predicted, each.low, each.high)
            )
            error = "-" if math.isnan(each.error) else f"{each.error:+.1%}"
            table.add_row(each.method, digits(each.measured), f"{predicted} ({low} to {high})", error)
        show(table)
        say("carries: where the share of requests within the limits crosses 90 %, between the two rates next to it")
    if found.ratios:
        _print_ratios(found.ratios)


def _print_ratios(ratios: Sequence["Ratio"]) -> None:
    from kvload.experiment.prediction.cells import guesses

    table = new_table("run", "method", "figure", "times baseline", "predicted", "80 %")
    for each in ratios:
        inside = "in" if each.held else "out"
        cells = f"{each.true:.2f}", f"{each.predicted:.2f} ({each.low:.2f} to {each.high:.2f})"
        table.add_row(each.run, each.method, each.figure, *cells, inside)
    show(table)
    moving = [each for each in ratios if each.moves]
    still = [each for each in ratios if not each.moves]
    say(f"{len(moving)} of {len(ratios)} ratios move by 5 % or more; of the others {_ones(still)} intervals hold 1")
    found = guesses(ratios)
    figures = list(dict.fromkeys(figure for each in found for figure in each.error))
    table = new_table("method's figures from", "skill", "sign right", *figures)
    for guess in found:
        skill, sign = guess.skill.skill, guess.skill.sign_right
        errors = [_error(name, guess.error[name]) if name in guess.error else "-" for name in figures]
        table.add_row(
            guess.name, "-" if skill is None else f"{skill:.2f}", "-" if sign is None else f"{sign:.0%}", *errors
        )
    show(table)
    say("skill: 1 less the squared log error of the moving ratios, relative to that of 'no change'; then mean errors")


def _ones(still: Sequence["Ratio"]) -> str:
    return f"{sum(each.low <= 1 <= each.high for each in still)} of {len(still)}"


def _error(figure: str, value: float, *, sign: bool = False) -> str:
    text = f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"
    return text + (" points" if figure == "attainment" else " %")
