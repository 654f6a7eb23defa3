"""A router from its options: servers, policy, bounds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvload.address import Address
from kvload.errors import UsageError
from kvload.route_model import Router, Routers, read
from kvload.units import parse_bytes, parse_duration


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What ``kvload route serve`` was asked for."""

    to: Sequence[str]
    policy: str
    share: float
    router: Path | None
    arm: str | None
    sticky: bool
    host: str
    port: int
    max_body: str
    max_in_flight: int
    quiet_for: str | None
    seed: int


def run(wanted: Wanted, tell: Callable[[str], None]) -> None:
    """Serve until told to stop.

    Raises:
        UsageError: an option cannot be used, or something is not installed.
    """
    from kvload.servers.router.decide import Decider
    from kvload.servers.router.policies import make
    from kvload.servers.router.policies.base import Settings
    from kvload.servers.router.process import ask_all, serve
    from kvload.servers.router.upstream import parse_to

    servers = parse_to(list(wanted.to))
    file = None if wanted.router is None else read(wanted.router)
    router = None if file is None else _router(file, wanted.arm, servers[-1].name)
    settings = Settings(
        servers=len(servers),
        share=wanted.share,
        seed=wanted.seed,
        router=router,
        target="negative" if file is None else file.target,
        recogniser=None if file is None else file.recogniser,
    )
    policy = make(wanted.policy, settings)
    max_body = parse_bytes(wanted.max_body, where="--max-body")
    quiet_s = None if wanted.quiet_for is None else parse_duration(wanted.quiet_for, where="--quiet-for")
    for note in ask_all(servers):
        tell(note)
    if router is not None:
        tell(f"{router.arm}: {router.fitted.sentence}")
    if not Address.parse(wanted.host if ":" not in wanted.host else f"[{wanted.host}]", where="--host").is_loopback:
        tell(f"listening on {wanted.host}: whoever reaches it uses these servers, and no key is asked for")

    def ready(url: str) -> None:
        names = ", ".join(f"{server.name} ({server.address})" for server in servers)
        tell(f"routing on {url} by {wanted.policy} to {names}")

    serve(
        Decider(policy, servers, sticks=wanted.sticky),
        body_bytes=max_body,
        in_flight=wanted.max_in_flight,
        quiet_s=quiet_s,
        host=wanted.host,
        port=wanted.port,
        on_ready=ready,
    )


def _router(file: Routers, arm: str | None, server: str) -> Router:
    """The router of an arm: named, or called as the compressed server is, or the only one."""
    names = {router.arm for router in file.routers}
    if arm is None and server in names:
        return file.of(server)
    try:
        return file.of(arm)
    except UsageError as error:
        error.hint = f"{error.hint}; name one with --arm, or the server as it is called"
        raise
