"""``kvload traces``: describe, convert and make traces."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvload.cli.options import (
    BlockTokens,
    End,
    FormatName,
    Limit,
    Sample,
    ScaleInput,
    Seed,
    Sort,
    Start,
    TimeUnit,
    TooLong,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvload.workloads.traces.selection import Selection
    from kvload.workloads.traces.trace import TraceRequest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Trace = Annotated[str, typer.Argument(metavar="TRACE", help="A trace file, or sample:demo.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write; standard output if absent.")]


@app.callback()
def traces() -> None:
    """Describe, convert and sample traces."""


@app.command(help="Print counts, rates, lengths, block reuse, sessions, and a picture of the arrivals.")
def describe(
    trace: Trace,
    format_name: FormatName = None,
    sort: Sort = False,
    time_unit: TimeUnit = None,
    block_tokens: BlockTokens = None,
    start: Start = "0s",
    end: End = None,
    limit: Limit = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    import json

    from kvload.workloads.traces.convert import Conversion, ConversionCounts, convert
    from kvload.workloads.traces.describe import describe as described
    from kvload.workloads.traces.formats import find_format, read_trace
    from kvload.workloads.traces.notes import Notes
    from kvload.workloads.traces.samples import trace_path

    path = trace_path(trace)
    found_format = find_format(path, format_name)
    part = Conversion(selection=_selection(start, end, limit, 1.0, 0))
    notes = Notes()
    requests = read_trace(
        path, found_format.name, sort=sort, time_unit=time_unit, block_tokens=block_tokens, notes=notes
    )
    found = described(convert(requests, part, ConversionCounts()))
    if as_json:
        said = {"trace": str(path), "format": found_format.name, "notes": notes.sentences()}
        print(json.dumps({**said, **found.as_dict()}, indent=2))
        return
    from kvload.terminal import console
    from kvload.workloads.traces.describe_text import print_description

    print_description(trace, found_format, found, console(), notes.sentences())


@app.command("convert", help="Write a trace, or a part of it, as kvload JSONL.")
def convert_trace(
    trace: Trace,
    format_name: FormatName = None,
    sort: Sort = False,
    time_unit: TimeUnit = None,
    block_tokens: BlockTokens = None,
    start: Start = "0s",
    end: End = None,
    limit: Limit = None,
    sample: Sample = 1.0,
    seed: Seed = 0,
    scale_input: ScaleInput = 1.0,
    cap_input: Annotated[int | None, typer.Option(help="Cut longer made-up prompts to so many tokens.")] = None,
    cap_output: Annotated[int | None, typer.Option(help="Cut longer answers to so many tokens.")] = None,
    max_total: Annotated[int | None, typer.Option(help="Most tokens of prompt and answer together.")] = None,
    too_long: Annotated[TooLong, typer.Option(help="What to do about requests beyond --max-total.")] = TooLong.ERROR,
    output: Output = None,
) -> None:
    from dataclasses import replace
    from functools import partial

    from kvload.terminal import plain
    from kvload.workloads.traces.convert import Conversion, ConversionCounts, common_factor, convert
    from kvload.workloads.traces.formats import read_trace
    from kvload.workloads.traces.notes import Notes
    from kvload.workloads.traces.samples import trace_path

    conversion = Conversion(
        selection=_selection(start, end, limit, sample, seed),
        scale_input=scale_input,
        cap_input=cap_input,
        cap_output=cap_output,
        max_total=max_total,
        too_long=too_long.value,
    )
    path, notes = trace_path(trace), Notes()
    read = partial(read_trace, path, format_name, sort=sort, time_unit=time_unit, block_tokens=block_tokens)
    if too_long is TooLong.SCALE:
        factor = common_factor(read(), conversion)
        conversion = replace(conversion, factor=factor)
        print(f"made-up prompts are scaled by {factor:.4g}", file=sys.stderr)
    counts = ConversionCounts()
    _write(convert(read(notes=notes), conversion, counts), output)
    print(*map(plain, notes.sentences()), counts, sep="\n", file=sys.stderr)


@app.command("sample", help="Make a trace by seed: lengths and arrivals, or (--probe) scored questions.")
def sample_trace(
    requests: Annotated[int, typer.Option(help="How many requests.")] = 100,
    rate: Annotated[float, typer.Option(help="Arrivals per second (of conversations, with --sessions).")] = 4.0,
    burstiness: Annotated[float, typer.Option(help="1 is Poisson; below 1 arrivals come in bursts.")] = 1.0,
    input_mean: Annotated[float, typer.Option(help="Mean prompt length in tokens.")] = 512.0,
    output_mean: Annotated[float, typer.Option(help="Mean answer length in tokens.")] = 128.0,
    input_max: Annotated[int, typer.Option(help="Longest prompt in tokens.")] = 8192,
    output_max: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 2048,
    sessions: Annotated[int, typer.Option(help="Spread the requests over so many conversations.")] = 0,
    think: Annotated[str, typer.Option(help="Mean pause before a later turn.")] = "2s",
    seed: Seed = 0,
    probe: Annotated[bool, typer.Option("--probe", help="Ask the probe model's questions.")] = False,
    tasks: Annotated[str, typer.Option(help="With --probe: tasks in turn, by comma.")] = "recall,list",
    context: Annotated[str, typer.Option(help="With --probe: prompt lengths in turn, by comma: 512,2k.")] = "1k",
    output: Output = None,
) -> None:
    from kvload.units import parse_duration, parse_tokens
    from kvload.workloads.schedule import synthetic

    spec = synthetic.SyntheticSpec(
        requests=requests,
        rate=rate,
        burstiness=burstiness,
        input_mean=input_mean,
        output_mean=output_mean,
        input_max=input_max,
        output_max=output_max,
        sessions=sessions,
        think_mean_s=parse_duration(think, where="--think"),
        seed=seed,
    )
    if probe:
        from kvload.servers.probe.tasks.generator import generate

        lengths = [parse_tokens(part, where="--context") for part in context.split(",")]
        made = [generate(tasks.split(","), length, -(-requests // len(lengths)), seed) for length in lengths]
        trace = synthetic.asked(synthetic.interleaved(made, requests), spec.arrivals)
    else:
        trace = synthetic.synthetic(spec)
    count = _write(trace, output)
    print(f"{count:,} requests written", file=sys.stderr)


def _selection(start: str, end: str | None, limit: int | None, sample: float, seed: int) -> "Selection":
    from kvload.units import parse_duration
    from kvload.workloads.traces.selection import Selection

    start_s = parse_duration(start, where="--start")
    end_s = None if end is None else parse_duration(end, where="--end")
    return Selection(start_s=start_s, end_s=end_s, sample=sample, limit=limit, seed=seed)


def _write(requests: "Iterable[TraceRequest]", path: Path | None) -> int:
    from kvload.workloads.traces.trace import write_trace, write_trace_file

    if path is not None:
        return write_trace_file(requests, path)
    count = write_trace(requests, sys.stdout.buffer)
    sys.stdout.buffer.flush()
    return count
