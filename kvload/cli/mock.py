"""``kvload mock``: run the mock server."""

from pathlib import Path
from typing import Annotated

import typer

from kvload.cli.options import grouped

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help="Run the mock server: OpenAI-compatible, with known timing and faults, and a log of what it did.")
@grouped
def mock(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 0,
    ttft: Annotated[str, typer.Option(help="Time to the first token.")] = "50ms",
    itl: Annotated[str, typer.Option(help="Time from chunk to chunk.")] = "10ms",
    tokens_per_chunk: Annotated[int, typer.Option(help="Tokens in a chunk.")] = 1,
    jitter: Annotated[float, typer.Option(help="Spread of all times, as a share of them (0 to 1).")] = 0.0,
    seed: Annotated[int, typer.Option(help="Decides jitter and faults, together with each request's bytes.")] = 0,
    fail: Annotated[str, typer.Option(help="Faults and their probabilities: reset=0.05,stall=0.01.")] = "",
    slots: Annotated[int | None, typer.Option(help="Requests answered at a time; the others wait.")] = None,
    model: Annotated[str, typer.Option(help="Name of the model it claims to serve.")] = "mock",
    default_tokens: Annotated[int, typer.Option(help="Answer length where the request has no max_tokens.")] = 128,
    max_model_len: Annotated[int, typer.Option(help="Longest prompt and answer together, in tokens.")] = 1 << 20,
    prefix_block: Annotated[
        int | None,
        typer.Option(help="Tokens of a prefix cache's block; answers tell its hits.", show_default=False),
    ] = None,
    processes: Annotated[int, typer.Option(help="Processes that share the port and the log.", min=1)] = 1,
    log: Annotated[Path | None, typer.Option(help="File for its own account of every request.")] = None,
    list_faults: Annotated[bool, typer.Option("--list-faults", help="Explain the faults and exit.")] = False,
) -> None:
    from kvload.units import parse_duration
    from kvload.workloads.mock.behaviour import BEHAVIOURS, MockSettings, parse_faults

    if list_faults:
        for name, text in BEHAVIOURS.items():
            print(f"{name:<24}{text}")
        return
    from kvload.workloads.mock.process import serve

    settings = MockSettings(
        ttft_s=parse_duration(ttft, where="--ttft"),
        itl_s=parse_duration(itl, where="--itl"),
        jitter=jitter,
        tokens_per_chunk=tokens_per_chunk,
        seed=seed,
        faults=parse_faults(fail),
        slots=slots,
        model=model,
        default_tokens=default_tokens,
        max_model_len=max_model_len,
        prefix_block=prefix_block,
    )
    serve(settings, host, port, log, processes)
