"""``kvload slo``: limits that others have published, by name."""

import typer

from kvload.cli.options import AsJson

app = typer.Typer(add_completion=False)


@app.command()
def slo(json_output: AsJson = False) -> None:
    """List published limits that --slo takes by name."""
    import json

    from kvload.cli.published_limits import MLPERF_SOURCE, PUBLISHED
    from kvload.units import format_limits

    if json_output:
        print(json.dumps({"limits_s": PUBLISHED, "source": MLPERF_SOURCE}, indent=2))
        return
    width = max(map(len, PUBLISHED))
    for name, limits in PUBLISHED.items():
        print(f"{name:<{width}}  {format_limits(limits)}")
    print(f"\n{MLPERF_SOURCE}; asked of the 99th percentile: --target 0.99")
    print("kvload sweep trace.jsonl --method none --slo mlperf:llama3.1-8b-interactive --target 0.99")
