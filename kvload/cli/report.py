"""``kvload report``: the report of a run folder, again."""

from pathlib import Path
from typing import Annotated

import typer

from kvload.cli.options import grouped

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def report(
    run: Annotated[
        Path | None, typer.Argument(help="A run folder; the newest in runs/ if left out.", show_default=False)
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON with the keys of vllm bench serve.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page that opens offline.", show_default=False)] = None,
    slo: Annotated[
        str | None, typer.Option(help="Judge by these limits instead of the run's: ttft=500ms,tpot=50ms,e2e=20s.")
    ] = None,
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.", min=0.5, max=0.999)] = 0.95,
    fail_if: Annotated[
        list[str] | None, typer.Option("--fail-if", help="Exit with 1 if this holds: 'attainment<0.99'.")
    ] = None,
) -> None:
    """Render the report of a run folder again."""
    import json
    import sys

    from kvload.analysis import gates
    from kvload.analysis.report import html_report, json_report, terminal
    from kvload.analysis.run.summary import summarise
    from kvload.cli.readings import read_gates, read_limits
    from kvload.rundir import RunDir
    from kvload.terminal import console

    conditions = read_gates(fail_if, "run", arms=["run"])
    if run is not None and not (run / "manifest.json").exists():
        _check_kind(run)
    if run is None:
        run = newest_run(Path("runs"))
        html = html or run / "report.html"
    built = summarise(RunDir.open(run), slo_limits=read_limits(slo) if slo else None, level=level)
    if json_output:
        json.dump(json_report.as_dict(built), sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        terminal.render(built, console())
    if html:
        html.write_text(html_report.render(built), encoding="utf-8")
        print(f"wrote {html}", file=sys.stderr)
    gates.check(conditions, gates.report_values(built))


def _check_kind(folder: Path) -> None:
    """Refuse the folder of an experiment, and say which command it belongs to.

    Raises:
        UsageError: it is one.
    """
    from kvload.errors import UsageError
    from kvload.experiment.plan import PLAN_NAME
    from kvload.experiment.sweep_plan import PLAN_NAME as SWEEP_NAME

    for name, what, command in ((PLAN_NAME, "a comparison", "compare"), (SWEEP_NAME, "a sweep", "sweep")):
        if (folder / name).is_file():
            hint = f"kvload {command} {folder} shows it; kvload report {folder}/runs/... one of its runs"
            raise UsageError(f"that is {what}, not a run", where=str(folder), hint=hint)


def newest_run(folder: Path) -> Path:
    """The run folder below ``folder`` that was begun last, itself or inside an experiment.

    Raises:
        UsageError: there is none.
    """
    from kvload.errors import UsageError

    found = [path.parent for path in (*folder.glob("*/manifest.json"), *folder.glob("*/runs/*/manifest.json"))]
    if not found:
        raise UsageError(f"there is no run in {folder}/", where="RUN", hint="kvload report RUN")
    return max(found, key=lambda path: (path / "manifest.json").stat().st_mtime_ns)
