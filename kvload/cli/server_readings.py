"""What the options that name servers mean: one that runs already, one to launch, and several side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvload.cli.options import BesideFlags, LaunchFlags, ServerFlags

if TYPE_CHECKING:
    from kvload.address import Address
    from kvload.servers.engines.base import LaunchRequest


def read_address(flags: ServerFlags, *, insecure: bool) -> "Address | None":
    """The address of a server that was not launched by kvload; None where a launched one is meant.

    Raises:
        UsageError: it is none, or a launched server is named as well.
    """
    from kvload.address import Address
    from kvload.errors import UsageError

    if flags.url is None:
        return None
    if flags.server is not None:
        raise UsageError("give one of them", where="--server, --url")
    return Address.parse(flags.url, insecure=insecure)


def read_launch(
    flags: LaunchFlags, model: str | None, engine_args: Sequence[str], *, compared: Sequence[str] = ()
) -> "LaunchRequest":
    """The server to launch, but for its method.

    Args:
        compared: methods that will be, if several: all then get the arguments without which a method would not be all
            that differs. What is added is said on standard error.

    Raises:
        UsageError: a value cannot be used.
    """
    import os
    from pathlib import Path

    from kvload.errors import UsageError
    from kvload.servers.engines.base import LaunchRequest, known
    from kvload.servers.host.devices import parse_gpus
    from kvload.terminal import console
    from kvload.units import parse_bytes

    if flags.load_format not in {"auto", "dummy"}:
        raise UsageError(f"'{flags.load_format}' is neither auto nor dummy", where="--load-format")
    made = known(flags.engine)
    shared = made.shared_arguments(compared, tuple(engine_args)) if made is not None else ()
    if shared:
        console(stderr=True).print(f"all arms run with {' '.join(shared)}, as these methods do", soft_wrap=True)
    return LaunchRequest(
        model=str(Path(model).expanduser()) if model and model.startswith("~") else model,
        engine=flags.engine,
        load_format=flags.load_format,
        kv_memory=parse_bytes(flags.kv_memory, where="--kv-memory") if flags.kv_memory else None,
        max_model_len=flags.max_model_len,
        tensor_parallel=flags.tensor_parallel,
        gpus=() if flags.gpus is None else parse_gpus(flags.gpus, os.environ),
        python=flags.python,
        engine_args=(*engine_args, *shared),
    )


def read_beside(flags: BesideFlags, launch: "LaunchRequest") -> "tuple[LaunchRequest, tuple[str, ...], int]":
    """The server to launch, the GPUs that arms are spread over side by side, and how many of them are one arm's.

    Nothing is spread where no GPUs are named, or with ``--serial``: each server then has the first of them.

    Raises:
        UsageError: there are too few GPUs for one server.
    """
    from dataclasses import replace

    from kvload.errors import UsageError
    from kvload.servers.engines.base import known

    every = launch.gpus
    launch = replace(launch, gpus=())
    made = known(launch.engine)
    ranks = made.ranks(launch) if made is not None else launch.tensor_parallel
    per_arm = flags.per_arm or ranks
    if per_arm < ranks:
        raise UsageError(f"a server is spread over {ranks} GPUs", where=f"--per-arm {per_arm}")
    if every and len(every) < per_arm:
        raise UsageError(f"a server takes {per_arm} GPUs, and {len(every)} are named", where="--gpus")
    if flags.place != "local" and flags.serial:
        raise UsageError("runs on a cluster are made as wide as it has room", where="--serial, --place")
    if flags.place != "local" and every:
        raise UsageError("the cluster says which GPUs a server gets", where="--gpus, --place", hint="use --per-arm")
    if flags.serial:
        return replace(launch, gpus=every[:per_arm]), (), per_arm
    return launch, every, per_arm
