"""Which engine ``--engine auto`` takes, and why."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvload.errors import UsageError
from kvload.servers.engines.base import Adapter, Build, LaunchRequest, adapter, adapters
from kvload.servers.host.machine import Machine


@dataclass(frozen=True)
class Choice:
    """An engine with the reason it was taken."""

    build: Build
    reason: str


def choose(request: LaunchRequest, env: Mapping[str, str], machine: Machine) -> Choice:
    """The engine that was asked for; under ``auto`` one that is made for GPUs where one is there, else our own.

    Args:
        env: variables the engine will run with.

    Raises:
        UsageError: the engine asked for is not installed.
    """
    if request.engine != "auto":
        made = adapter(request.engine)
        build = made.find(request.python, env, machine)
        if build is None:
            raise _not_installed(made, request.python, f"--engine {request.engine}")
        return Choice(build, "as asked")
    every = list(adapters())
    ours = next(one for one in every if one.in_kvload)
    own = ours.find(None, env, machine)
    others = [one for one in every if one.auto_on_gpu]
    names = " or ".join(one.name for one in others)
    if not machine.gpus and own is not None:
        return Choice(own, f"no GPU here; --engine {names} to choose one of these")
    for one in others if machine.gpus else ():
        build = one.find(request.python, env, machine)
        if build is not None and build.device == "cuda":
            return Choice(build, f"{machine.gpus[0].name} and {one.name} {build.version or ''} are there")
    if own is None:
        raise _not_installed(ours, None, "--engine auto")
    return Choice(own, f"{machine.gpus[0].name} is there, but no {names} for it")


def _not_installed(made: Adapter, python: str | None, where: str) -> UsageError:
    what = "the embedded engine" if made.in_kvload else made.name
    return UsageError(
        f"{what} is not installed in {python or 'this Python environment'}",
        where=where,
        hint=f"pip install 'kvload[{made.extra or made.name}]', or name the Python it is installed in with --python",
    )
