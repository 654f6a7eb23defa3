"""``kvload route``: which requests suffer under compression, told from paired runs, and a router for them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Tell which requests suffer under compression, and send those to the full cache.",
)


class TargetName(StrEnum):
    """What is foretold."""

    NEGATIVE = "negative"
    INFLATION = "inflation"
    SCORE = "score"


Comparisons = Annotated[
    list[Path],
    typer.Argument(
        metavar="COMPARISON...", help="Folders of comparisons, of run folders, or score files as for kvload quality."
    ),
]
RouterFile = Annotated[Path, typer.Option("--router", help="Routers, as 'kvload route fit' makes them.")]
Arms = Annotated[list[str] | None, typer.Option("--arm", help="Only this compressed arm; may be repeated.")]
Baseline = Annotated[str | None, typer.Option(help="The arm with the full cache, where it is not plain.")]
TraceFile = Annotated[
    Path | None, typer.Option(help="The trace that was replayed, or its folder, if it is not where the runs say.")
]
Pattern = Annotated[str | None, typer.Option(help="How score files are named: '{arm}_{dataset}_eval.json'.")]
Part = Annotated[str | None, typer.Option(help="Only a part of the conversations: 1/2, and 2/2 for the others.")]
GateText = Annotated[str, typer.Option("--gate", help="What the baseline must reach: median, mean, or a score.")]
Seed = Annotated[int, typer.Option(help="Decides everything that is drawn.")]
Share = Annotated[float, typer.Option(help="Of the requests, to the full cache: what the table shows.", min=0, max=1)]


@app.command()
def fit(
    comparisons: Comparisons,
    target: Annotated[
        TargetName, typer.Option(help="negative samples, inflation of the answer, or the score lost.")
    ] = TargetName.NEGATIVE,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the routers.")] = Path("router.json"),
    arm: Arms = None,
    baseline: Baseline = None,
    trace: TraceFile = None,
    pattern: Pattern = None,
    part: Part = None,
    theta: Annotated[str, typer.Option(help="The relative fall of the score that counts.")] = "0.1",
    ratio: Annotated[float, typer.Option(help="The length ratio from which an answer is inflated.", min=1.01)] = 1.5,
    gate: GateText = "median",
    share: Share = 0.2,
    seed: Seed = 0,
) -> None:
    """Fit a router for every compressed arm of some comparisons."""
    import sys

    from kvload.analysis.quality.negatives import parse_gate, parse_thetas
    from kvload.cli.route_tables import print_fit
    from kvload.experiment.routing.fitting import Source, fit_routers, parse_part
    from kvload.route_model import write

    source = Source(comparisons, baseline, trace, pattern, arm or (), parse_part(part))
    routers, curves = fit_routers(
        source, target.value, theta=parse_thetas(theta)[0], ratio=ratio, gate=parse_gate(gate), seed=seed
    )
    write(output, routers)
    print_fit(routers, curves, share)
    print(f"wrote {output}", file=sys.stderr)


@app.command()
def evaluate(
    comparisons: Comparisons,
    router: RouterFile = Path("router.json"),
    arm: Arms = None,
    baseline: Baseline = None,
    trace: TraceFile = None,
    pattern: Pattern = None,
    part: Part = None,
    gate: GateText = "median",
    share: Share = 0.2,
    seed: Seed = 0,
    page: Annotated[Path | None, typer.Option(help="Also write a page with the curves (HTML).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Hold routers against requests that they were not fitted on: what each share to the full cache gains."""
    import json
    import sys
    from dataclasses import asdict

    from kvload.analysis.quality.negatives import parse_gate
    from kvload.cli.route_tables import print_evaluation
    from kvload.experiment.routing.fitting import Source, evaluate_routers, parse_part
    from kvload.route_model import read

    routers = read(router)
    source = Source(comparisons, baseline, trace, pattern, arm or (), parse_part(part))
    found, notes = evaluate_routers(source, routers, gate=parse_gate(gate), seed=seed)
    if page is not None:
        from kvload.analysis.report import html_route
        from kvload.errors import UsageError

        try:
            page.write_text(html_route.render(found, routers.target, notes), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot be written: {error.strerror}", where=str(page)) from error
        print(f"wrote {page}", file=sys.stderr)
    if as_json:
        print(json.dumps({"evaluations": [asdict(each) for each in found], "notes": notes}, indent=2))
    else:
        print_evaluation(found, share, notes)


class PolicyName(StrEnum):
    """How a server is chosen."""

    FRAGILE = "fragile"
    SHARE = "share"
    TASK = "task"
    RANDOM = "random"
    LEAST_LOADED = "least-loaded"
    ROUND_ROBIN = "round-robin"


@app.command()
def serve(
    to: Annotated[list[str], typer.Option("--to", help="NAME=http://HOST:PORT; the one with the full cache first.")],
    router: Annotated[Path | None, typer.Option("--router", help="Routers, as 'kvload route fit' makes them.")] = None,
    policy: Annotated[
        PolicyName | None, typer.Option(help="How a server is chosen; fragile with a router, else least-loaded.")
    ] = None,
    share: Annotated[float, typer.Option(help="Of the requests, to the full cache.", min=0, max=1)] = 0.2,
    arm: Annotated[str | None, typer.Option("--arm", help="Whose router; by the second --to if left out.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 0,
    sticky: Annotated[bool, typer.Option("--sticky/--no-sticky", help="Later turns go where the first went.")] = True,
    max_body: Annotated[str, typer.Option(help="Largest request.")] = "16MiB",
    max_in_flight: Annotated[int, typer.Option(help="Requests at a time; others get 503.", min=1)] = 4096,
    quiet_for: Annotated[
        str | None, typer.Option(help="Give an answer up when nothing came for so long: 10min.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Serve a router: one OpenAI-compatible address that sends each request to the server that suits it."""
    import sys

    from kvload.experiment.routing.serving import Wanted, run

    name = policy.value if policy is not None else "least-loaded" if router is None else "fragile"
    wanted = Wanted(
        to=to,
        policy=name,
        share=share,
        router=router,
        arm=arm,
        sticky=sticky,
        host=host,
        port=port,
        max_body=max_body,
        max_in_flight=max_in_flight,
        quiet_for=quiet_for,
        seed=seed,
    )
    run(wanted, lambda text: print(text, file=sys.stderr, flush=True))
