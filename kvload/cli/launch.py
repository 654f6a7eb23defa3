"""``kvload launch``: start a server and wait until it answers."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from kvload.cli.options import LaunchFlags, grouped
from kvload.cli.server_readings import read_launch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvload.servers.lifecycle.interrupts import Interrupts
    from kvload.servers.lifecycle.places import Server
    from kvload.servers.lifecycle.registry import ServerEntry


class LaunchCommand(TyperCommand):
    """Takes what follows ``--`` as the engine's arguments, also where no MODEL stands before it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            place = args.index("--")
            ctx.meta["engine_args"] = tuple(args[place + 1 :])
            args = args[:place]
        return super().parse_args(ctx, args)


app = typer.Typer(add_completion=False)


@app.command("launch", cls=LaunchCommand, options_metavar="[OPTIONS] [-- ENGINE ARGS]")
@grouped
def launch_command(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="A model's folder, .gguf file or hub name; kvload's probe model where left out."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="KV-cache compression, as in 'kvload methods'; raw:NAME for an engine's own dtype.")
    ] = "none",
    name: Annotated[str | None, typer.Option(help="What to call the server; made from engine and method.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; a free one where left out.", min=1, max=65535)
    ] = None,
    launch: LaunchFlags = LaunchFlags(),
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the engine alone; may be repeated.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Check that compression is there and the cache is sound.")
    ] = False,
    timeout: Annotated[str | None, typer.Option(help="How long the start may take: 5min.")] = None,
    replicas: Annotated[int, typer.Option(help="So many equal servers under one name.", min=1)] = 1,
    place: Annotated[
        str, typer.Option(help="Where it is started: local, or ray for a cluster's node, until this command ends.")
    ] = "local",
    address: Annotated[str, typer.Option(help="With --place ray: the cluster's head, HOST:6379.")] = "auto",
) -> None:
    """Start a server, with or without KV-cache compression, and wait until it has produced a token."""
    from dataclasses import replace

    from rich.text import Text

    from kvload.errors import UsageError
    from kvload.servers.catalogue.asked import canonical
    from kvload.servers.launcher import LaunchEvent, launch_replicas, place_of, place_replicas
    from kvload.servers.launcher import launch as start
    from kvload.servers.lifecycle import cards, held, interrupts
    from kvload.terminal import console as make_console
    from kvload.terminal import plain
    from kvload.units import parse_duration

    variables: dict[str, str] = {}
    for item in env or []:
        variable, separator, value = item.partition("=")
        if not separator or not variable:
            raise UsageError(f"'{item}' is not NAME=VALUE", where="--env")
        variables[variable] = value
    request = replace(
        read_launch(launch, model, ctx.meta.get("engine_args", ())),
        method=canonical(method),
        name=name,
        host=host,
        port=port,
        env=variables,
        verify=verify,
        timeout_s=None if timeout is None else parse_duration(timeout, where="--timeout"),
    )
    if place != "local" and (request.gpus or request.port is not None):
        raise UsageError(
            "a cluster's server has the GPUs and the port that it gets there", where="--place, --gpus, --port"
        )
    console = make_console(stderr=True, pipe_width=None)
    for gpu in request.gpus:
        if (measured := cards.holder(gpu)) is not None:
            text = f"note: GPU {gpu} is being measured on by {measured}: this server will be in what is measured"
            console.print(plain(text), soft_wrap=True)
    cluster = None if place == "local" else place_of(place, address)
    said: set[str] = set()

    with interrupts.kept_back() as asked:
        try:
            with console.status("starting") as status:

                def show(event: LaunchEvent) -> None:
                    if event.kind in {"note", "ready"}:
                        console.print(event.text, soft_wrap=True)
                        return
                    status.update(Text(f"{plain(event.text)} ({event.elapsed_s:.0f} s)"))
                    if not console.is_terminal and event.text not in said:
                        said.add(event.text)
                        console.print(f"  {event.elapsed_s:5.1f} s  {event.text}", soft_wrap=True)

                if cluster is not None:
                    names = held.names(request.name or f"{place}-{request.method}", replicas)
                    servers = place_replicas(cluster, request, names, show)
                else:
                    entries = launch_replicas(request, replicas, show) if replicas > 1 else [start(request, show)]
                    _settle(asked, entries)
        except KeyboardInterrupt:
            console.print("stopped: the server that was starting has ended, and nothing of it is left", soft_wrap=True)
            raise
        if cluster is not None:
            _hold(servers, console)
            return
        if entries[0].host not in {"127.0.0.1", "localhost", "::1"}:
            console.print(f"note: it listens on {entries[0].host}: others can reach it", soft_wrap=True)
        print(entries[0].group or entries[0].name)


def _settle(asked: "Interrupts", entries: "Sequence[ServerEntry]") -> None:
    """The servers stay, unless an interrupt came at the last moment."""
    from kvload.servers.launcher import stop

    try:
        asked.settle()
    except KeyboardInterrupt:
        for entry in entries:
            stop(entry)
        raise


def _hold(servers: "Mapping[str, Server]", console: Any) -> None:
    """Stay for as long as a cluster's servers live, and end them with this command."""
    import contextlib

    from kvload.servers.lifecycle import held, interrupts

    first, *more = servers
    name = first.rpartition(".")[0] if more else first
    with contextlib.suppress(KeyboardInterrupt), interrupts.kept_back() as asked:
        try:
            with held.registered(servers, name if more else None):
                for each in servers.values():
                    console.print(f"on {each.entry.info.node}: {each.entry.url}", soft_wrap=True)
                console.print(f"they end with this command: Ctrl-C, or kvload stop {name}", soft_wrap=True)
                print(name, flush=True)
                with asked.heeded():
                    held.wait_for_a_death(servers)
        finally:
            for each in servers.values():
                each.stop()
            asked.settle()
