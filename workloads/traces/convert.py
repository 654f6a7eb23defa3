"""A trace made into another one, as a stream: parts of it, with other lengths."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kvload.errors import TraceError, UsageError
from kvload.workloads.traces.fitting import (
    TooLong,
    cap_input,
    cap_output,
    fit,
    fitting_factor,
    input_tokens,
    scale_input,
)
from kvload.workloads.traces.selection import Selection, SelectionCounts, select
from kvload.workloads.traces.trace import TraceRequest, shifted


@dataclass(frozen=True)
class Conversion:
    """What to change.

    Attributes:
        selection: the part to keep.
        scale_input: factor on the length of made-up prompts.
        cap_input, cap_output: longest prompt and answer in tokens; longer ones are cut.
        max_total: the most tokens of prompt and answer together.
        too_long: what to do about requests beyond ``max_total``: ``drop``, ``cap`` or ``scale`` (all made-up prompts by
            ``factor``), as in :func:`kvload.workloads.traces.fitting.fit`.
        factor: see :func:`common_factor`.
    """

    selection: Selection = field(default_factory=Selection)
    scale_input: float = 1.0
    cap_input: int | None = None
    cap_output: int | None = None
    max_total: int | None = None
    too_long: TooLong = "error"
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale_input < float("inf"):
            raise UsageError(f"a factor of {self.scale_input} is not above 0", where="--scale-input")
        for name in ("cap_input", "cap_output", "max_total"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{value} is not a length of 1 or more", where=f"--{name.replace('_', '-')}")


@dataclass
class ConversionCounts:
    """Rows read, kept, changed in some length, left out for being too long or for lacking their beginning, and kept as
    they were since nobody knows how many tokens their text has."""

    rows: int = 0
    kept: int = 0
    scaled: int = 0
    capped: int = 0
    dropped: int = 0
    headless: int = 0
    unknown: int = 0

    def __str__(self) -> str:
        parts = [f"{self.rows:,} rows read, {self.kept:,} written"]
        told = {
            "scaled": self.scaled,
            "capped": self.capped,
            "left out as too long": self.dropped,
            "later turns left out without their beginning": self.headless,
            "texts kept whatever their length, which only the server knows (replay has --too-long)": self.unknown,
        }
        return ", ".join(parts + [f"{count:,} {text}" for text, count in told.items() if count])


def convert(
    requests: Iterable[TraceRequest], conversion: Conversion, counts: ConversionCounts
) -> Iterator[TraceRequest]:
    """The changed trace, one request at a time; its first arrival is at 0 again. ``counts`` fill in on the way."""
    selected = SelectionCounts()
    zero: float | None = None
    for request in select(iter(requests), conversion.selection, selected):
        scaled = scale_input(request, conversion.scale_input)
        scaled = scale_input(scaled, conversion.factor)
        counts.scaled += scaled is not request
        capped = scaled if conversion.cap_input is None else cap_input(scaled, conversion.cap_input)
        capped = capped if conversion.cap_output is None else cap_output(capped, conversion.cap_output)
        if conversion.max_total is not None:
            counts.unknown += input_tokens(capped) is None
            fitted = _fitted(capped, conversion.max_total, conversion.too_long)
            if fitted is None:
                counts.dropped += 1
                continue
            capped = fitted
        counts.capped += capped is not scaled and capped != scaled
        if capped.arrival is not None:
            zero = capped.arrival if zero is None else zero
            capped = shifted(capped, zero)
        counts.kept += 1
        yield capped
    counts.rows, counts.headless = selected.rows, selected.headless


def _fitted(request: TraceRequest, limit: int, policy: TooLong) -> TraceRequest | None:
    size, need = input_tokens(request) or 0, _need(request)
    if policy == "error" and size + need > limit:
        raise TraceError(
            f"request '{request.id}' has {size} + {need} tokens, beyond --max-total {limit}",
            hint="choose --too-long drop, cap or scale",
        )
    # prompts are scaled already, by the factor for the whole trace
    fitted = fit([request], [need], limit, "cap" if policy == "scale" else policy).requests
    return fitted[0] if fitted else None


def common_factor(requests: Iterable[TraceRequest], conversion: Conversion) -> float:
    """The one factor for all made-up prompts that makes the longest request fit into ``max_total``; reads the trace."""
    if conversion.max_total is None:
        return 1.0
    factor = 1.0
    for request in select(iter(requests), conversion.selection, SelectionCounts()):
        scaled = scale_input(request, conversion.scale_input)
        factor = min(factor, fitting_factor(scaled, _need(scaled), conversion.max_total))
    return factor


def _need(request: TraceRequest) -> int:
    return request.output_length or request.max_tokens or 0
