"""What ``kvload plan`` prints, and what a plan costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvload.cli.predict_words import (
    HITS,
    TOO_LARGE,
    beyond,
    digits,
    load_rate,
    new_table,
    round_percent,
    say,
    show,
    there_are,
)

if TYPE_CHECKING:
    from kvload.experiment.prediction.plan import Plan

NEVER = {"size", "alone"}
"""Reasons for which no number of servers is enough."""


@dataclass(frozen=True)
class Costs:
    """What a plan costs.

    Attributes:
        gpu_hours: of all servers' GPUs; None without a number of servers.
        cost: in the currency of the price; None without a price.
        cost_per_million_tokens: of the answers.
    """

    gpu_hours: float | None
    cost: float | None
    cost_per_million_tokens: float | None


def costs(plan: "Plan", gpu_hour: float | None, gpus: int) -> Costs:
    """What a plan costs.

    Args:
        gpu_hour: price of a GPU-hour.
        gpus: of a server.
    """
    hours = None if plan.hours is None else plan.hours * gpus
    cost = None if hours is None or gpu_hour is None else hours * gpu_hour
    return Costs(hours, cost, None if cost is None else cost / plan.tokens * 1e6)


def print_plans(found: Sequence["Plan"], gpu_hour: float | None, gpus: int) -> None:
    """One line a method and load."""
    several = len({each.rate_rps for each in found}) > 1
    heading = ["method", "servers", "meets SLO", "one fewer fails at", "GPU-hours"]
    table = new_table(
        *(["req/s"] if several else []),
        *heading,
        *(["cost", "per million tokens"] if gpu_hour is not None else []),
    )
    for each in found:
        of = costs(each, gpu_hour, gpus)
        row = [
            *([load_rate(each.rate_rps)] if several else []),
            each.method,
            ("none" if each.reason in NEVER else "too few") if each.servers is None else str(each.servers),
            f"{each.attainment:.1%}" if each.reason not in NEVER else f"{each.attainment:.1%} at most",
            "-" if each.reason in NEVER else each.reason,
        ]
        shown = [of.gpu_hours, *([of.cost, of.cost_per_million_tokens] if gpu_hour is not None else [])]
        table.add_row(*row, *("-" if value is None else digits(value) for value in shown))
    show(table)
    say("simulated; memory: no room in the cache, compute: servers busy or steps too long, tail: bursts")
    for hits in dict.fromkeys(each.hits for each in found):
        say(f"prefix hits: {HITS[hits]}")
    for each in found:
        at = f" at {load_rate(each.rate_rps)}/s" if several else ""
        if each.reason == "alone":
            say(f"{each.method}: even with a server to themselves, too many requests miss the limits{at}")
        if each.refused:
            say(f"{each.method}: {there_are(each.refused)} {TOO_LARGE}{at}")
        for words in beyond(each.outside):
            say(f"{each.method}: outside what the model knows{at}: {words}")
        if each.cached:
            say(f"{each.method}: the prefix cache held {round_percent(each.cached)} of the prompts' tokens{at}")
