"""``kvload schema``: the JSON schemas of what kvload writes."""

from typing import Annotated

import typer

app = typer.Typer(add_completion=False)

KINDS = {
    "manifest": "kvload.records:RunManifest",
    "record": "kvload.records:RequestRecord",
    "sample": "kvload.records:ServerSample",
    "trace": "kvload.workloads.traces.trace:TraceRequest",
    "experiment": "kvload.experiment.plan:ExperimentPlan",
    "sweep-plan": "kvload.experiment.sweep:SweepPlan",
}
"""What has a schema, and the type it is made from."""


@app.command()
def schema(
    kind: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(KINDS)}.", show_default=False)] = None,
) -> None:
    """Print the JSON schema of a manifest, a record, a trace row and so on."""
    import importlib
    import json

    import msgspec

    from kvload.errors import UsageError

    if kind is None:
        print("\n".join(KINDS))
        return
    if kind not in KINDS:
        raise UsageError(f"'{kind}' has no schema", where="KIND", hint=f"one of: {', '.join(KINDS)}")
    module, _, name = KINDS[kind].partition(":")
    print(json.dumps(msgspec.json.schema(getattr(importlib.import_module(module), name)), indent=2))
