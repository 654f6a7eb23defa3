"""``kvload logs``: a server's log."""

from typing import Annotated

import typer

from kvload.cli.options import grouped

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def logs(
    name: Annotated[str | None, typer.Argument(help="The server; the only or newest one where left out.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many lines from the end; 0 for all.", min=0)] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the log grows, until Ctrl-C.")] = False,
) -> None:
    """Show a server's log; also that of one that did not start or was stopped."""
    import os
    import time
    from collections import deque
    from pathlib import Path

    from kvload.config import state_dir
    from kvload.errors import UsageError
    from kvload.servers.lifecycle import registry
    from kvload.servers.lifecycle.masking import known_secrets, mask_text
    from kvload.servers.lifecycle.readiness import LogFollower
    from kvload.terminal import plain

    secrets = known_secrets(os.environ)

    if name is None:
        entries = registry.entries()
        known = [entry.log for entry in entries] or sorted(
            (state_dir() / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime
        )
        if not known:
            raise UsageError("there is no server and no log", hint="start one with 'kvload launch'")
        path = known[-1]
    else:
        entry = registry.load(name)
        replicas = [] if entry else registry.members(name)
        if replicas:
            raise UsageError(
                f"'{name}' is {len(replicas)} servers, each with a log of its own",
                hint=f"kvload logs {replicas[0].name} ... {replicas[-1].name}",
            )
        if entry and not registry.is_ours(entry.log):
            raise UsageError(f"the entry of '{name}' names a log outside kvload's state folder", where=str(entry.log))
        path = entry.log if entry else Path(state_dir() / "logs" / f"{registry.check_name(name)}.log")
    if not path.is_file():
        raise UsageError(f"there is no log of a server '{name}'", hint="kvload status lists the servers")
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in deque(file, lines) if lines else file:
            print(plain(mask_text(line, secrets)), end="")
    if not follow:
        return
    follower = LogFollower(path, offset=path.stat().st_size)
    while True:
        for line in follower.new_lines():
            print(plain(mask_text(line, secrets)), flush=True)
        time.sleep(0.2)
