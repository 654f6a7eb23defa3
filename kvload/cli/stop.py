"""``kvload stop``: end servers that kvload launched."""

from typing import Annotated

import typer

from kvload.cli.options import grouped

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def stop(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="The only one where left out.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Stop every server that was launched.")] = False,
) -> None:
    """Stop a server: all of its processes, and nobody else's."""
    from kvload.errors import UsageError
    from kvload.servers import launcher
    from kvload.servers.lifecycle import registry
    from kvload.terminal import console as make_console

    console = make_console(stderr=True, pipe_width=None)
    known = registry.entries()
    damaged = registry.damaged()
    for error in damaged:
        console.print(f"warning: {error}", soft_wrap=True)
    if everything:
        chosen = known
    elif names:
        by_name = {entry.name: [entry] for entry in known}
        for entry in known:
            if entry.group is not None:
                by_name.setdefault(entry.group, []).append(entry)
        missing = [name for name in names if name not in by_name]
        if missing:
            raise UsageError(f"there is no server '{missing[0]}'", hint=f"known: {', '.join(by_name) or 'none'}")
        chosen = [entry for name in names for entry in by_name[name]]
    elif len(known) > 1 and len({entry.group or entry.name for entry in known}) > 1:
        raise UsageError("several servers are there", hint=f"name one of {', '.join(e.name for e in known)}, or --all")
    else:
        chosen = known
    if not chosen:
        console.print("no server is running")
    for entry in chosen:
        if entry.info.node is not None and registry.load(entry.name) is None:
            console.print(f"{entry.name} stopped with the others that the same command held")
            continue
        report = launcher.stop(entry)
        how = "stopped" if report.was_running else "cleared away (it was dead)"
        console.print(f"{entry.name} {how}{'; it did not end by itself and was killed' if report.killed else ''}")
        if report.gpu_left_mib:
            console.print(
                f"warning: {report.gpu_left_mib} MiB more GPU memory is in use than before {entry.name} was started"
            )
