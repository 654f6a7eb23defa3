"""``kvload calibrate``: measure the client's own error against the mock server."""

from typing import Annotated

import typer

from kvload.cli.options import grouped

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@grouped
def calibrate(
    rate: Annotated[float, typer.Option(help="Requests per second.", min=0.1, max=2000)] = 20.0,
    tokens: Annotated[int, typer.Option(help="Tokens in an answer, one a chunk.", min=1)] = 128,
    ttft: Annotated[str, typer.Option(help="The mock server's time to the first token.")] = "50ms",
    itl: Annotated[str, typer.Option(help="The mock server's time between chunks.")] = "10ms",
    workers: Annotated[int, typer.Option(help="Processes that send.", min=1)] = 1,
    seconds: Annotated[float, typer.Option(help="How long requests are sent.", min=0.5)] = 4.0,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the client's own error and cost at a given load, against a mock server whose timing is known."""
    import json

    from kvload.units import parse_duration
    from kvload.workloads.calibration.calibrate import Load
    from kvload.workloads.calibration.calibrate import calibrate as measure

    load = Load(
        rate=rate,
        tokens=tokens,
        ttft_s=parse_duration(ttft, where="--ttft"),
        itl_s=parse_duration(itl, where="--itl"),
        duration_s=seconds,
    )
    found = measure(load, workers=workers)
    if json_output:
        print(json.dumps(found.as_dict(), indent=2))
        return
    from rich.table import Table

    from kvload.terminal import console

    table = Table.grid(padding=(0, 2))
    table.add_row("load", f"{load.rate:g} requests/s of {load.tokens} tokens, about {load.streams:.0f} at a time")
    table.add_row("sent", f"{_number(found.achieved_rate)} requests/s, {found.failed} of {found.requests} failed")
    table.add_row("cost", f"{_number(found.cpu_us_per_chunk)} us of CPU a chunk, {_share(found.cpu_share)} of a core")
    table.add_row("mock server", f"{_share(found.mock_cpu_share)} of a core")
    table.add_row("send lag", f"p50 {_ms(found.lag_p50_s)}, p99 {_ms(found.lag_p99_s)}")
    table.add_row("TTFT error", f"p50 {_ms(found.ttft_error_p50_s)}, p99 {_ms(found.ttft_error_p99_s)}")
    table.add_row("ITL error", f"p50 {_ms(found.itl_error_p50_s)}, p99 {_ms(found.itl_error_p99_s)}")
    table.add_row("clock", found.clock)
    console().print(table)


def _ms(value_s: float | None) -> str:
    return "-" if value_s is None else f"{value_s * 1e3:.3f} ms"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
