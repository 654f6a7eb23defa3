"""What the options that name servers mean: one that runs already, one to launch, and several side by side."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvload.cli.options import BesideFlags, LaunchFlags, ServerFlags

if TYPE_CHECKING:
    from pathlib import Path

    from kvload.address import Address
    from kvload.experiment.plan import Arm
    from kvload.experiment.slots import Slot
    from kvload.servers.engines.base import LaunchRequest
    from kvload.servers.lifecycle.places import Place


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
    ranks = made.width(launch) if made is not None else launch.tensor_parallel
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


@dataclass(frozen=True)
class Resumed:
    """Where an experiment is gone on with.

    Attributes:
        launch: its servers.
        gpus: those of this machine that are spread over; none for one run after the other.
        per_arm: of one server.
        place, address: where servers are started.
    """

    launch: "LaunchRequest"
    gpus: tuple[str, ...]
    per_arm: int
    place: str
    address: str


def resumed(
    launch: "LaunchRequest",
    gpus: tuple[str, ...],
    per_arm: int,
    place: tuple[str, str],
    flags: BesideFlags,
    asked: str | None,
    arms: "Sequence[Arm]",
) -> Resumed:
    """Where an experiment is gone on with: as it began, but for what is asked.

    Args:
        launch, gpus, per_arm, place: as it began.
        flags: what is asked.
        asked: its ``--gpus``; None where others are not asked for.
        arms: of the experiment.

    Raises:
        UsageError: these GPUs cannot be used, or those it began with cannot any more.
    """
    import os
    from dataclasses import replace

    from kvload.errors import UsageError
    from kvload.servers.host.devices import parse_gpus

    name, address = place
    if flags.place != "local" or flags.serial or asked is not None:
        name = flags.place
    address = flags.address if flags.address != "auto" else address
    every = gpus if asked is None else parse_gpus(asked, os.environ)
    if (theirs := next((arm for arm in arms if arm.url is not None), None)) and (asked is not None or name != "local"):
        raise UsageError(
            f"the server of the arm '{theirs.name}' runs already: it cannot be given a GPU", where="--gpus, --place"
        )
    if asked is None and name == "local" and (kept := gpus or launch.gpus):
        try:
            parse_gpus(",".join(kept), os.environ, where="--resume")
        except UsageError as error:
            error.hint = f"{error.hint}; name others: --gpus" if error.hint else "name others: --gpus"
            raise
    if not every and asked is None and name == "local":
        # one after the other, on the GPUs that its servers were given
        return Resumed(launch, (), flags.per_arm or per_arm, name, address)
    if name != "local":
        every = every if asked is not None else ()
    wanted = replace(flags, place=name, address=address, per_arm=flags.per_arm or per_arm)
    launch, every, per_arm = read_beside(wanted, replace(launch, gpus=every))
    return Resumed(launch, every, per_arm, name, address)


def slots_for(gpus: Sequence[str], per_arm: int, workers: int, place: "Place | None") -> "tuple[Slot, ...]":
    """Where runs are made side by side; none where one follows the other on this machine.

    Args:
        gpus: of this machine, that are spread over.
        per_arm: of one server.
        workers: processes that send, in each slot.
        place: the cluster; None for this machine.

    Raises:
        UsageError: there are too few GPUs for one server.
    """
    import os

    from kvload.experiment.slots import make_slots, room_slots, usable_cpus
    from kvload.servers.host.devices import kinds

    if place is not None:
        return room_slots(place.rooms(per_arm))
    return make_slots(gpus, per_arm, usable_cpus(), workers, kinds(gpus, os.environ)) if gpus else ()


@contextlib.contextmanager
def gpus_of_its_own(
    launches: bool, slots: "Sequence[Slot]", launch: "LaunchRequest", per_arm: int, folder: "Path"
) -> "Iterator[None]":
    """Hold the GPUs that an experiment launches servers on, against other experiments; say what else is on them.

    Args:
        launches: it launches servers at all.
        slots: its places side by side; none for one run after the other.
        launch: its servers.
        per_arm: GPUs of each.
        folder: the experiment's.

    Raises:
        UsageError: another experiment has one of them.
    """
    import os
    import sys

    from kvload.errors import UsageError
    from kvload.servers.engines.base import known
    from kvload.servers.host.devices import are_there, usable
    from kvload.servers.lifecycle import cards

    gpus = tuple(gpu for slot in slots for gpu in slot.gpus) or launch.gpus
    made = known(launch.engine)
    if not gpus and not slots and not (made is not None and made.in_kvload) and are_there():
        # the engine takes the first ones it sees, if it sees any
        with contextlib.suppress(UsageError):
            gpus = usable(os.environ)[:per_arm]
    with cards.held(gpus if launches else (), f"{folder} (process {os.getpid()})"):
        for remark in cards.occupied(gpus) if launches else ():
            print(remark, file=sys.stderr)
        yield
