"""How predictions, checks and plans are written: tables, numbers and what to keep in mind."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

LEFT = {"method", "run", "figure", "stage", "in the run", "method's figures from"}
"""Columns of words."""

HITS = {
    "counted": "as counted by the server",
    "reckoned": "reckoned from block ids",
    "off": "none, the run's prefix cache was off",
    "unknown": "none known",
}
"""How it is known what a prefix cache held."""

BEYOND = {
    "decodes": "of the steps have more requests at once",
    "context": "of the steps have longer contexts",
    "prompt_tokens": "of the steps with prompts have more prompt tokens",
    "prompt_work": "of the steps with prompts have longer prompts",
}
"""Features of a step that leave what was measured."""

TOO_LARGE = "larger than the server's context or whole cache"


def new_table(*headings: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in LEFT else "right")
    return table


def show(table: "Table") -> None:
    from kvload.terminal import console

    console().print(table)


def say(text: str) -> None:
    from kvload.terminal import console

    console().print(text)


def load_rate(rate_rps: float) -> str:
    """A load's rate; that of requests which arrive at once has no end."""
    return "inf" if math.isinf(rate_rps) else digits(rate_rps)


def span(values: Sequence[float], form: Callable[[float], str]) -> str:
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def digits(value: float, digits: int = 3) -> str:
    """So many significant digits, and never an exponent."""
    if math.isnan(value):
        return "-"
    whole = abs(value) >= 10**digits or (digits == 2 and abs(value) >= 10)
    return f"{value:,.0f}" if whole else f"{value:.{digits}g}"


def round_percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def in_units(value_s: float) -> str:
    """Three digits, in the unit that suits them."""
    return f"{value_s * 1e3:.3g} ms" if value_s < 1 else f"{value_s:.3g} s"


def times_text(ratio: tuple[float, float, float]) -> str:
    return f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"


def there_are(requests: int) -> str:
    return f"{requests:,} requests are" if requests != 1 else "1 request is"


def beyond(outside: Mapping[str, float]) -> list[str]:
    """What leaves what was measured, and how often."""
    return [f"{round_percent(share)} {BEYOND[name]} than were measured" for name, share in outside.items()]


def finite(value: Any) -> Any:
    """Numbers that JSON does not have as None."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
