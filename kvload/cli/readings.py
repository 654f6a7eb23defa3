"""What the shared options of commands mean: flags read into a schedule, a way of sending, limits and gates."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from kvload.cli.options import (
    ArrivalFlags,
    LimitFlags,
    PageFlags,
    RequestFlags,
    SendingFlags,
    TraceFlags,
)

if TYPE_CHECKING:
    from kvload.analysis.gates import Gate
    from kvload.experiment.options import RunOptions
    from kvload.workloads.run.plan import Sending, Swarm
    from kvload.workloads.schedule.arrivals import ArrivalSpec
    from kvload.workloads.schedule.options import ScheduleOptions


_A_DAY_S = 86_400.0
"""Longer than any answer: how long is waited where requests have no limit of their own."""


def trace_and_limits(words: Sequence[str], limits: LimitFlags) -> tuple[list[str], dict[str, float]]:
    """What is not a limit among a command's arguments, and all limits in seconds by name.

    vLLM's ``--goodput ttft:200 tpot:50`` takes several words, of which all but the first arrive as arguments.

    Raises:
        UsageError: a limit does not parse, or both ways of giving them are used.
    """
    found = [word for word in words if word.split(":")[0] in {"ttft", "tpot", "e2e", "e2el"} and ":" in word]
    return [word for word in words if word not in found], read_limits(limits.slo, " ".join([limits.goodput, *found]))


def one_trace(names: Sequence[str], usage: str) -> str:
    """The only one of a command's arguments.

    Raises:
        UsageError: there is another number of them.
    """
    from kvload.errors import UsageError

    if len(names) != 1:
        message = f"one trace at a time, not {len(names)}" if names else "a trace is required"
        raise UsageError(message, where="TRACE", hint=usage if names else f"{usage}; sample:demo comes with kvload")
    return names[0]


def read_limits(slo: str, goodput: str = "") -> dict[str, float]:
    """Limits in seconds by name, from ``--slo`` or, in vLLM's spelling, from ``--goodput``.

    Raises:
        UsageError: one does not parse, or both are given.
    """
    from kvload.errors import UsageError
    from kvload.units import parse_limits

    if slo.startswith("mlperf:"):
        from kvload.cli.published_limits import published

        return published(slo)
    if slo.strip() and goodput.strip():
        raise UsageError("give one of them: they say the same", where="--slo, --goodput")
    return parse_limits(slo, where="--slo") or parse_limits(goodput, where="--goodput", bare_unit="ms")


def read_request_limits(slo: str) -> dict[str, float]:
    """Limits on every single request, in seconds by name, from ``--slo``.

    Raises:
        UsageError: one does not parse, or is on a percentile of a whole run.
    """
    from kvload.errors import UsageError
    from kvload.units import format_limits, percentile_of, request_limits

    limits = read_limits(slo)
    for name in limits.keys() - request_limits(limits).keys():
        percent, metric = percentile_of(name) or (0.0, name)
        raise UsageError(
            f"{name} limits a run's percentile, and predictions count requests",
            where="--slo",
            hint=f"{format_limits({metric: limits[name]})}, which {percent:g} % of the requests have to meet",
        )
    return limits


def read_gates(
    texts: Sequence[str] | None,
    of: Literal["run", "comparison", "capacity"],
    *,
    arms: Sequence[str] | None = None,
    limited: bool | None = None,
) -> "tuple[Gate, ...]":
    """The conditions of ``--fail-if``.

    Args:
        of: what they are about, which says what figures there will be.
        arms: that a condition may name; not looked at where None.
        limited: whether limits are given; None where that is not known yet.

    Raises:
        UsageError: one is none, or names an arm or a figure that there will not be.
    """
    from kvload.analysis import gates

    found = tuple(gates.parse(text) for text in texts or ())
    if of == "capacity":
        known = frozenset({"capacity", "capacity.low"})
    else:
        known = gates.run_figures() if of == "run" else gates.comparison_figures()
    named = [gate.arm for gate in found if gate.arm is not None] if arms is None else arms
    gates.check_names(found, known, arms=named, limited=limited)
    return found


def read_headers(sending: SendingFlags) -> dict[str, str]:
    """Names and values of ``--header``, and what ``--api-key`` stands for.

    Raises:
        UsageError: one is not ``Name: value``, or the key is none that a header can carry.
    """
    from kvload.errors import UsageError
    from kvload.keys import bearer, check_key, overridden

    headers: dict[str, str] = {}
    for text in sending.header or ():
        name, separator, value = text.partition(":")
        if not separator or not name.strip():
            # the text may be a key: it is not repeated
            raise UsageError("a header is written 'Name: value'", where="--header")
        headers[name.strip()] = value.strip()
    if sending.api_key:
        return overridden(headers, bearer(check_key(sending.api_key, "--api-key")))
    return headers


def read_arm_keys(texts: Sequence[str] | None, arms: Sequence[str]) -> dict[str, dict[str, str]]:
    """Headers of single arms by name, from ``--arm-key NAME=VARIABLE``.

    Args:
        arms: the names that are known.

    Raises:
        UsageError: one is not ``NAME=VARIABLE``, names no arm, or its variable is not set.
    """
    import os

    from kvload.errors import UsageError
    from kvload.keys import bearer, key_named

    found: dict[str, dict[str, str]] = {}
    for text in texts or ():
        name, separator, variable = text.rpartition("=")
        if not separator or not name or not variable:
            raise UsageError("written NAME=VARIABLE, the variable that holds the key", where="--arm-key")
        if name not in arms:
            raise UsageError(f"there is no arm '{name}'", where="--arm-key", hint=f"arms: {', '.join(arms)}")
        found[name] = bearer(key_named(variable, os.environ, "--arm-key"))
    return found


def read_arrivals(trace: TraceFlags, flags: ArrivalFlags, seed: int) -> "ArrivalSpec":
    """What ``--arrivals``, ``--speed``, ``--rate`` and so on mean together.

    Raises:
        UsageError: one does not parse, or they exclude each other.
    """
    from kvload.errors import UsageError
    from kvload.units import parse_duration, parse_rate
    from kvload.workloads.schedule.arrivals import ArrivalSpec, parse_ramps

    rate = None if flags.rate is None else parse_rate(flags.rate, where="--rate")
    at_once = rate == math.inf
    kind = flags.arrivals
    if flags.concurrency is not None or at_once:
        if kind is not None or (rate is not None and not at_once) or flags.ramp is not None or flags.speed != 1.0:
            raise UsageError(
                "they exclude each other: a closed loop has no rate",
                where="--rate inf" if flags.concurrency is None else "--concurrency, --rate",
                hint="--max-concurrency caps an open loop",
            )
        kind = "once"
    elif kind is None:
        kind = "gamma" if flags.burstiness is not None else "trace"
    spec: Any = {"kind": kind}
    return ArrivalSpec(
        **spec,
        speed=flags.speed,
        rate=None if at_once else rate,
        burstiness=1.0 if flags.burstiness is None else flags.burstiness,
        ramps=parse_ramps(flags.ramp) if flags.ramp else (),
        jitter_s=parse_duration(flags.jitter, where="--jitter"),
        start_s=parse_duration(trace.start, where="--start"),
        end_s=None if trace.end is None else parse_duration(trace.end, where="--end"),
        seed=seed,
    )


def read_schedule(trace: TraceFlags, requests: RequestFlags, arrivals: "ArrivalSpec") -> "ScheduleOptions":
    """How a trace is read and what is made of it.

    Raises:
        UsageError: the range of token ids does not parse.
    """
    from kvload.errors import UsageError
    from kvload.workloads.schedule.options import ScheduleOptions

    token_range = None
    if requests.token_range is not None:
        low, _, high = requests.token_range.partition("-")
        if not low.isdecimal() or not high.isdecimal() or not int(low) < int(high) <= 1 << 31:
            raise UsageError(
                f"'{requests.token_range}' is not a range of token ids", where="--token-range", hint="write LOW-HIGH"
            )
        token_range = int(low), int(high)
    return ScheduleOptions(
        format=trace.format_name,
        sort=trace.sort,
        time_unit=trace.time_unit,
        block_tokens=trace.block_tokens,
        mode=requests.mode.value,
        arrivals=arrivals,
        limit=trace.limit,
        sample=trace.sample,
        default_max_tokens=requests.max_tokens,
        too_long=requests.too_long.value,
        scale_input=requests.scale_input,
        temperature=requests.temperature,
        top_p=requests.top_p,
        return_token_ids=requests.token_ids,
        token_range=token_range,
        extra_body=read_extra_body(requests.extra_body),
        seed=requests.seed,
    )


OWN_FIELDS = frozenset({"model", "messages", "prompt", "stream", "stream_options", "max_tokens", "n"})
"""Fields of a request that the trace and its mode decide."""


def read_extra_body(text: str | None) -> dict[str, Any]:
    """The fields of ``--extra-body``.

    Raises:
        UsageError: it is not a JSON object, or sets a field that the trace decides.
    """
    import json

    from kvload.errors import UsageError

    if text is None:
        return {}
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise UsageError(f"is not JSON: {error}", where="--extra-body") from None
    if not isinstance(fields, dict):
        raise UsageError("is not a JSON object", where="--extra-body", hint="""--extra-body '{"top_k": 1}'""")
    if taken := sorted(OWN_FIELDS & fields.keys()):
        raise UsageError(f"the trace decides: {', '.join(taken)}", where="--extra-body")
    return fields


def read_metadata(texts: Sequence[str] | None) -> dict[str, str]:
    """Names and values of ``--metadata``.

    Raises:
        UsageError: one is not ``NAME=VALUE``.
    """
    from kvload.errors import UsageError

    found: dict[str, str] = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UsageError(f"'{text}' is not NAME=VALUE", where="--metadata")
        found[name] = value
    return found


def read_sending(flags: SendingFlags, concurrency: int | None = None, policy: str = "round-robin") -> "Sending":
    """How requests are sent.

    Raises:
        UsageError: a time does not parse.
    """
    from kvload.balancing import policy_of
    from kvload.units import parse_duration
    from kvload.workloads.run.plan import Sending

    timeout_s = None if flags.timeout == "none" else parse_duration(flags.timeout, where="--timeout")
    if flags.drain == "timeout":
        drain_s = _A_DAY_S if timeout_s is None else timeout_s
    else:
        drain_s = parse_duration(flags.drain, where="--drain")
    return Sending(
        workers=flags.workers,
        timeout_s=timeout_s,
        drain_s=drain_s,
        max_concurrency=flags.max_concurrency,
        concurrency=concurrency,
        warmups=flags.warmups,
        policy=policy_of(policy),
    )


def read_run(
    trace: TraceFlags,
    requests: RequestFlags,
    arrivals: "ArrivalSpec",
    sending: SendingFlags,
    limits: dict[str, float],
    *,
    concurrency: int | None = None,
    max_model_len: int | None = None,
    policy: str = "round-robin",
) -> "RunOptions":
    """A run, but for its server.

    Raises:
        UsageError: one of the options does not parse.
    """
    from kvload.experiment.options import RunOptions

    return RunOptions(
        schedule=read_schedule(trace, requests, arrivals),
        sending=read_sending(sending, concurrency, policy),
        slo=limits,
        max_model_len=max_model_len,
        reset_cache=not sending.keep_cache,
        calibrate=sending.calibrate,
        insecure=sending.insecure,
        metadata=read_metadata(sending.metadata),
        label=sending.label,
    )


def read_page(flags: PageFlags, *, autostart: bool = False) -> "Swarm":
    """Locust's web page, if it is wanted.

    Args:
        autostart: runs start by themselves, since there are several of them.
    """
    from kvload.workloads.run.plan import Swarm

    return Swarm(web_host=flags.web_host, web_port=flags.web_port if flags.web else None, autostart=autostart)


def read_share(text: str, where: str) -> float:
    """A share, written as ``0.05`` or ``5%``.

    Raises:
        UsageError: it is none.
    """
    from kvload.errors import UsageError

    try:
        share = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"'{text}' is no share between 0 and 1", where=where, hint="write 0.05 or 5%")
    return share
