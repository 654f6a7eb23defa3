"""What can be known before the first server of an experiment is launched, checked before it is.

Every arm is looked at, and all that is wrong is said at once: an experiment of hours must not end at its fifth arm
over a misspelt method.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kvload.address import Address
from kvload.errors import KvloadError, MachineError, UsageError
from kvload.experiment.plan import Arm, ExperimentPlan
from kvload.keys import overridden
from kvload.servers.catalogue.asked import MethodSpec, read_method
from kvload.servers.engines.base import adapters, known

_RECORD_BYTES = 1_500
_TOKEN_BYTES = 12
"""What a request and a token of its answer take in a run folder, about: a record with its text, and a chunk row."""


def check(
    plan: ExperimentPlan,
    folder: Path,
    trace: Path,
    *,
    runs: int,
    headers: Mapping[str, str],
    arm_headers: Mapping[str, Mapping[str, str]],
) -> list[str]:
    """Check an experiment before it begins.

    Args:
        folder: where it will be kept; it need not exist.
        trace: the file that is replayed.
        runs: how many are to be made.
        headers, arm_headers: as they will be sent.

    Returns:
        what the user should know and that ends nothing.

    Raises:
        KvloadError: what is wrong; of the kind of the first fault, all of them in its message.
    """
    errors: list[KvloadError] = []
    longest: list[int] = []
    for arm in plan.arms:
        if arm.base != arm.name:
            continue
        try:
            limit = _check_arm(plan, arm, overridden(headers, arm_headers.get(arm.base, {})))
        except KvloadError as error:
            error.where = f"arm '{arm.name}'" + (f": {error.where}" if error.where else "")
            errors.append(error)
        else:
            longest += [] if limit is None else [limit]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise type(errors[0])("\n  ".join(["several arms cannot be run", *map(str, errors)]))
    return _check_schedule(plan, folder, trace, runs, min(longest, default=None))


def _check_arm(plan: ExperimentPlan, arm: Arm, headers: Mapping[str, str]) -> int | None:
    """Check one arm; returns its server's limit on prompt and answer, where it is known."""
    if arm.url is None and plan.place != "local":
        # what a node's engine can do is told there: this machine may have neither the engine nor a GPU
        _check_name(plan.launch.engine, arm.method or "none")
        return plan.launch.max_model_len
    if arm.url is None:
        from kvload.servers.launcher import plan_for

        arguments = (*plan.launch.engine_args, *arm.engine_args)
        plan_for(replace(plan.launch, method=arm.method or "none", engine_args=arguments, name=None))
        return plan.launch.max_model_len
    from kvload.servers.watch import discover
    from kvload.workloads.run.headers import request_headers

    address = Address.parse(arm.url, where="--arm", insecure=plan.run.insecure)
    return discover.server_info(address, request_headers(headers), model=plan.served_model).max_model_len


def _check_name(engine: str, method: str) -> None:
    """Refuse a method that no engine, or not the one that is asked for, has by any name that kvload knows."""
    wanted = read_method(method)
    made = known(engine)
    offered = {name for one in ([made] if made is not None else adapters()) for name in one.offers()}
    if isinstance(wanted, MethodSpec) and wanted.name not in offered:
        raise UsageError(
            f"{engine if made is not None else 'no engine'} has {'no' if made is not None else 'a'} method '{method}'",
            where=f"--method {method}",
            hint="kvload methods lists what each engine can do",
        )


def _check_schedule(plan: ExperimentPlan, folder: Path, trace: Path, runs: int, max_model_len: int | None) -> list[str]:
    """The trace under the narrowest server's limit, and the room its runs take."""
    from kvload.workloads.schedule.build import load_schedule

    limit = plan.run.max_model_len or max_model_len
    schedule = load_schedule(trace, plan.run.schedule, model="", max_model_len=limit)
    tokens = sum(request.max_tokens for request in schedule.planned)
    needed = runs * (len(schedule.planned) * _RECORD_BYTES + tokens * _TOKEN_BYTES)
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise MachineError(
            f"{runs} runs take up to {needed >> 20:,} MiB, and {free >> 20:,} MiB are free",
            where=str(there),
            hint="choose another --out, or fewer requests with --limit",
        )
    sending = plan.run.sending
    if sending.concurrency is not None and sending.concurrency < sending.workers:
        raise UsageError(f"{sending.concurrency} cannot be shared by {sending.workers} workers", where="--concurrency")
    return [f"the runs may take {needed >> 20:,} of {free >> 20:,} MiB"] if needed > free // 2 else []
