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
    "sweep-plan": "kvload.experiment.sweep_plan:SweepPlan",
}
"""What has a schema, and the type it is made from."""

REPORTS = ("report", "comparison", "sweep")
"""What is written by reports: ``report --json``, ``comparison.json``, and a sweep's ``results.json``."""

_EVERY = (*KINDS, *REPORTS)


@app.command()
def schema(
    kind: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(_EVERY)}.", show_default=False)] = None,
) -> None:
    """Print the JSON schema of a manifest, a record, a trace row, a report and so on."""
    import difflib
    import importlib
    import json

    import msgspec

    from kvload.errors import UsageError

    if kind is None:
        print("\n".join(_EVERY))
        return
    if kind in REPORTS:
        from kvload.analysis.report.schemas import schema_of

        print(json.dumps(schema_of(kind), indent=2))
        return
    if kind not in KINDS:
        close = difflib.get_close_matches(kind, _EVERY, n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of: {', '.join(_EVERY)}"
        raise UsageError(f"'{kind}' has no schema", where="KIND", hint=hint)
    module, _, name = KINDS[kind].partition(":")
    print(json.dumps(msgspec.json.schema(getattr(importlib.import_module(module), name)), indent=2))
