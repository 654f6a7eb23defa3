"""``kvload launch``: start a server and wait until it answers."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


class LaunchCommand(TyperCommand):
    """Takes what follows ``--`` as the engine's arguments, also where no MODEL stands before it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            place = args.index("--")
            ctx.meta["engine_args"] = tuple(args[place + 1 :])
            args = args[:place]
        return super().parse_args(ctx, args)


app = typer.Typer(add_completion=False)


@app.command(cls=LaunchCommand, options_metavar="[OPTIONS] [-- ENGINE ARGS]")
def launch(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="A model's folder or hub name; kvload's own probe model where left out.")
    ] = None,
    engine: Annotated[str, typer.Option(help="auto, embedded, vllm or sglang.")] = "auto",
    method: Annotated[
        str, typer.Option(help="KV-cache compression, as in 'kvload methods'; raw:NAME for an engine's own dtype.")
    ] = "none",
    name: Annotated[str | None, typer.Option(help="What to call the server; made from engine and method.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; a free one where left out.", min=1, max=65535)
    ] = None,
    load_format: Annotated[str, typer.Option(help="auto, or dummy for random weights.")] = "auto",
    kv_memory: Annotated[str | None, typer.Option(help="Size of the KV cache, as in 512MiB.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Longest prompt and answer, in tokens.", min=1)] = None,
    python: Annotated[str | None, typer.Option(help="The Python (or environment) the engine is installed in.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the engine alone; may be repeated.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Check that compression is there and the cache is sound.")
    ] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds the start may take.", min=1)] = None,
) -> None:
    """Start a server, with or without KV-cache compression, and wait until it has produced a token."""
    from rich.text import Text

    from kvload.errors import UsageError
    from kvload.servers.launcher import LaunchEvent, LaunchRequest
    from kvload.servers.launcher import launch as start
    from kvload.terminal import console as make_console
    from kvload.terminal import plain
    from kvload.units import parse_bytes

    if load_format not in {"auto", "dummy"}:
        raise UsageError(f"'{load_format}' is neither auto nor dummy", where="--load-format")
    variables: dict[str, str] = {}
    for item in env or []:
        variable, separator, value = item.partition("=")
        if not separator or not variable:
            raise UsageError(f"'{item}' is not NAME=VALUE", where="--env")
        variables[variable] = value
    request = LaunchRequest(
        model=str(Path(model).expanduser()) if model and model.startswith("~") else model,
        engine=engine,
        method=method,
        name=name,
        host=host,
        port=port,
        load_format=load_format,
        kv_memory=parse_bytes(kv_memory, where="--kv-memory") if kv_memory else None,
        max_model_len=max_model_len,
        python=python,
        engine_args=ctx.meta.get("engine_args", ()),
        env=variables,
        verify=verify,
        timeout_s=timeout,
    )
    console = make_console(stderr=True, pipe_width=None)
    said = ""
    with console.status("starting") as status:

        def show(event: LaunchEvent) -> None:
            nonlocal said
            if event.kind in {"note", "ready"}:
                console.print(event.text, soft_wrap=True)
                return
            status.update(Text(f"{plain(event.text)} ({event.elapsed_s:.0f} s)"))
            if not console.is_terminal and event.text != said:
                said = event.text
                console.print(f"  {event.elapsed_s:5.1f} s  {event.text}", soft_wrap=True)

        entry = start(request, show)
    if entry.host not in {"127.0.0.1", "localhost", "::1"}:
        console.print(f"note: it listens on {entry.host}: others can reach it", soft_wrap=True)
    print(entry.name)
