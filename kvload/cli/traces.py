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
    grouped,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvload.workloads.traces.selection import Selection
    from kvload.workloads.traces.trace import TraceRequest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Trace = Annotated[str, typer.Argument(metavar="TRACE", help="A trace file, or sample:demo.")]
Output = Annotated[Path | None, typer.Option("--out", "-o", help="File to write; standard output if absent.")]


@app.callback()
def traces() -> None:
    """Describe, convert and sample traces."""


@app.command(help="Print counts, rates, lengths, block reuse, sessions, and a picture of the arrivals.")
@grouped
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
@grouped
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


@app.command(
    "sample",
    help="Make a trace by seed: lengths and arrivals, or questions with answers (--probe, or --needle for any model).",
)
@grouped
def sample_trace(
    requests: Annotated[int, typer.Option(help="How many requests.")] = 100,
    rate: Annotated[float, typer.Option(help="Arrivals per second (of conversations, where there are any).")] = 4.0,
    burstiness: Annotated[float, typer.Option(help="1 is Poisson; below 1 arrivals come in bursts.")] = 1.0,
    input_length: Annotated[
        str | None, typer.Option("--input", help="Prompt length in tokens: 1024, or 512-2k for any between.")
    ] = None,
    output_length: Annotated[
        str | None, typer.Option("--output", help="Answer length in tokens: 128, or 64-256 for any between.")
    ] = None,
    isl_osl: Annotated[
        str | None, typer.Option(help="Lengths of prompt and answer, taken in turn: 1024:128,8k:512.")
    ] = None,
    input_mean: Annotated[float, typer.Option(help="Mean of long-tailed prompt lengths, without --input.")] = 512.0,
    output_mean: Annotated[float, typer.Option(help="Mean of long-tailed answer lengths, without --output.")] = 128.0,
    input_max: Annotated[int, typer.Option(help="Longest of them.")] = 8192,
    output_max: Annotated[int, typer.Option(help="Longest of them.")] = 2048,
    like: Annotated[
        str | None, typer.Option(help="Mean lengths of a dataset: sharegpt (161 and 338 tokens) or alpaca (19 and 58).")
    ] = None,
    shared_prefix: Annotated[
        int, typer.Option(help="Tokens that stand before every prompt, the same for all.", min=0)
    ] = 0,
    prefixes: Annotated[int, typer.Option(help="How many different ones, taken in turn.", min=1)] = 1,
    sessions: Annotated[int, typer.Option(help="Spread the requests over so many conversations.")] = 0,
    turns: Annotated[float | None, typer.Option(help="Conversations with so many turns in the mean.")] = None,
    think: Annotated[str, typer.Option(help="Mean pause before a later turn.")] = "2s",
    seed: Seed = 0,
    probe: Annotated[bool, typer.Option("--probe", help="Ask the probe model's questions.")] = False,
    needle: Annotated[
        bool, typer.Option("--needle", help="Ask for one fact in a long text; for any chat model, 256 to 128k tokens.")
    ] = False,
    tasks: Annotated[str, typer.Option(help="With --probe: tasks in turn, by comma.")] = "recall,list",
    context: Annotated[
        str | None,
        typer.Option(help="With --probe or --needle: prompt lengths in turn, by comma: 512,2k; 1k if absent."),
    ] = None,
    depths: Annotated[
        str, typer.Option(help="With --needle: where the fact stands, in turn, 0 (start) to 1 (end).")
    ] = "0.1,0.3,0.5,0.7,0.9",
    distractors: Annotated[int, typer.Option(help="With --needle: facts of the same kind about other things.")] = 3,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="With --needle: a model's folder, to make lengths exact; estimated for any model if absent."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; standard output if absent.")
    ] = None,
) -> None:
    from kvload.errors import UsageError
    from kvload.units import parse_duration, parse_tokens
    from kvload.workloads.schedule import questions, synthetic
    from kvload.workloads.schedule.needle import estimated_tokens, needles, tokenizer_count

    if output is None and sys.stdout.isatty():
        raise UsageError(
            "the trace would be written to the terminal", hint="name a file by -o, or send it through a pipe"
        )
    if context is not None and not (probe or needle):
        raise UsageError(
            "prompt lengths of questions are asked for, and no questions",
            where="--context",
            hint="add --needle or --probe",
        )
    if output_length is not None and output is None and not output_length[:1].isdigit():
        raise UsageError(f"'{output_length}' is not a length in tokens", where="--output", hint="-o names the file")
    means = (input_mean, output_mean)
    if like is not None:
        if like not in synthetic.MEASURED:
            raise UsageError(
                f"no such dataset: '{like}'", where="--like", hint=f"known: {', '.join(synthetic.MEASURED)}"
            )
        means = synthetic.MEASURED[like]
    spec = synthetic.SyntheticSpec(
        requests=requests,
        rate=rate,
        burstiness=burstiness,
        input=synthetic.LongTailed(means[0], input_max, synthetic.INPUT_SPREAD)
        if input_length is None
        else synthetic.parse_lengths(input_length, where="--input"),
        output=synthetic.LongTailed(means[1], output_max, synthetic.OUTPUT_SPREAD)
        if output_length is None
        else synthetic.parse_lengths(output_length, where="--output"),
        pairs=() if isl_osl is None else synthetic.parse_pairs(isl_osl, where="--isl-osl"),
        shared_prefix=shared_prefix,
        prefixes=prefixes,
        sessions=sessions,
        turns_mean=turns,
        think_mean_s=parse_duration(think, where="--think"),
        seed=seed,
    )
    if not (probe or needle):
        trace = synthetic.synthetic(spec)
    else:
        lengths = [parse_tokens(part.strip(), where="--context") for part in (context or "1k").split(",")]
        each = -(-requests // len(lengths))
        made: list[Sequence[questions.Question]]
        if probe:
            from kvload.servers.probe.tasks.generator import generate

            made = [generate(tasks.split(","), length, each, seed) for length in lengths]
        else:
            count = estimated_tokens if tokenizer is None else tokenizer_count(tokenizer)
            places = _shares(depths)
            made = [
                needles(length, each, depths=places, distractors=distractors, seed=seed, token_count=count)
                for length in lengths
            ]
        trace = questions.asked(questions.interleaved(made, requests), spec.arrivals)
    written = _write(trace, output)
    print(f"{written:,} requests written", file=sys.stderr)


def _shares(text: str) -> list[float]:
    from kvload.errors import UsageError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"'{text}' is no list of shares", where="--depths", hint="write 0.1,0.5,0.9") from None


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
