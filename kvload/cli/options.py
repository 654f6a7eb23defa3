"""Options that several commands have, each declared once and read once.

A group of options is a frozen dataclass. A command that is decorated with :func:`grouped` takes the group as one
parameter, and its users see one option for each field, under a heading of the group's own.
"""

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from kvload.address import Address
    from kvload.analysis.gates import Gate
    from kvload.experiment.options import RunOptions
    from kvload.servers.engines.base import LaunchRequest
    from kvload.workloads.run.plan import Sending, Swarm
    from kvload.workloads.schedule.arrivals import ArrivalSpec
    from kvload.workloads.schedule.options import ScheduleOptions

Result = TypeVar("Result")

# Single options, for commands that take a few of them.

FormatName = Annotated[
    str | None, typer.Option("--format", help="The trace's format; told from the content if left out.")
]
Sort = Annotated[bool, typer.Option("--sort", help="Allow arrivals out of order; the trace is then held in memory.")]
TimeUnit = Annotated[
    str | None, typer.Option(help="Unit of the trace's times: s, ms, us, ns; as its format says or its rows show.")
]
BlockTokens = Annotated[
    int | None, typer.Option(help="Tokens in a block of the trace's block ids; as its lengths show if absent.", min=1)
]
Start = Annotated[str, typer.Option(help="Use the trace from this time on: 90s, 5min.")]
End = Annotated[str | None, typer.Option(help="Use the trace up to this time.")]
Limit = Annotated[int | None, typer.Option("--limit", "--num-prompts", help="At most so many requests.", min=1)]
Sample = Annotated[float, typer.Option(help="Share of whole sessions to keep, 0 to 1.")]
ScaleInput = Annotated[float, typer.Option(help="Factor on the length of made-up prompts.")]
Seed = Annotated[int, typer.Option(help="Decides everything that is drawn.", min=0)]
Burstiness = Annotated[
    float | None, typer.Option(help="Shape of gamma gaps: 1 is Poisson, below comes in bursts.", min=0.001)
]
Model = Annotated[str | None, typer.Option(help="Model to launch; kvload's probe model if left out.")]
Slo = Annotated[
    str, typer.Option(help="Limits to meet: ttft=500ms,tpot=50ms,e2e=20s; or published ones, see kvload slo.")
]
Goodput = Annotated[str, typer.Option(help="The same as vLLM writes it, in ms: ttft:200 tpot:50.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


Warmups = Annotated[int, typer.Option("--num-warmups", "--warmups", help="Requests before each run.", min=0)]


class Mode(StrEnum):
    """Values of ``--mode``."""

    AUTO = "auto"
    FREE = "free"
    FORCED = "forced"


class TooLong(StrEnum):
    """Values of ``--too-long``."""

    ERROR = "error"
    DROP = "drop"
    CAP = "cap"
    SCALE = "scale"


@dataclass(frozen=True, kw_only=True)
class TraceFlags:
    """Which requests of a trace are used, and how it is read."""

    heading: ClassVar[str] = "Trace"

    format_name: FormatName = None
    sort: Sort = False
    time_unit: TimeUnit = None
    block_tokens: BlockTokens = None
    start: Start = "0s"
    end: End = None
    limit: Limit = None
    sample: Sample = 1.0


@dataclass(frozen=True, kw_only=True)
class ArrivalFlags:
    """When requests are due."""

    heading: ClassVar[str] = "Arrivals"

    speed: Annotated[float, typer.Option(help="Replay so many times as fast as recorded.")] = 1.0
    rate: Annotated[
        str | None, typer.Option("--rate", "--request-rate", help="Mean requests per second; inf sends all at once.")
    ] = None
    arrivals: Annotated[
        str | None, typer.Option(help="trace (as recorded), constant, poisson, gamma; trace if left out.")
    ] = None
    burstiness: Burstiness = None
    ramp: Annotated[str | None, typer.Option(help="Rates over time: 1-8/60s,8/2min.")] = None
    jitter: Annotated[str, typer.Option(help="Add up to so much to each recorded arrival.")] = "0s"
    concurrency: Annotated[int | None, typer.Option(help="Closed loop: so many in flight, times ignored.")] = None


@dataclass(frozen=True, kw_only=True)
class RequestFlags:
    """What is asked for in each request."""

    heading: ClassVar[str] = "Requests"

    mode: Annotated[
        Mode,
        typer.Option(
            help="free: answers end by themselves; forced: lengths as recorded; auto: forced if the trace has no texts."
        ),
    ] = Mode.AUTO
    max_tokens: Annotated[int | None, typer.Option(help="Cap of answers the trace has none for.", min=1)] = None
    too_long: Annotated[TooLong, typer.Option(help="What to do about requests over the server's limit.")] = (
        TooLong.ERROR
    )
    scale_input: ScaleInput = 1.0
    token_range: Annotated[str | None, typer.Option(help="Ids of made-up prompts: LOW-HIGH.")] = None
    temperature: Annotated[float | None, typer.Option(help="Override the trace's temperature.", min=0)] = None
    top_p: Annotated[float | None, typer.Option(help="Override the trace's top_p.")] = None
    token_ids: Annotated[bool, typer.Option("--token-ids", help="Ask for and record token ids.")] = False
    extra_body: Annotated[
        str | None, typer.Option(help="JSON object whose fields every request gets: '{\"top_k\": 1}'.")
    ] = None
    seed: Seed = 0


_A_DAY_S = 86_400.0
"""Longer than any answer: how long is waited where requests have no limit of their own."""


@dataclass(frozen=True, kw_only=True)
class SendingFlags:
    """How requests are sent."""

    heading: ClassVar[str] = "Sending"

    max_concurrency: Annotated[int | None, typer.Option(help="Most requests in flight; the others wait.")] = None
    warmups: Warmups = 4
    workers: Annotated[int, typer.Option(help="Processes that send.", min=0)] = 1
    timeout: Annotated[str, typer.Option(help="A request's limit; none for no limit.")] = "10min"
    drain: Annotated[str, typer.Option(help="Wait so long for the last answers.")] = "2min"
    header: Annotated[list[str] | None, typer.Option(help="'Name: value', sent along; may be repeated.")] = None
    metadata: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, kept with the run; may be repeated.")] = None
    label: Annotated[str | None, typer.Option(help="What reports call the run.")] = None
    api_key: Annotated[
        str | None, typer.Option(help="The server's key; better in KVLOAD_API_KEY, where no process list shows it.")
    ] = None
    insecure: Annotated[bool, typer.Option("--insecure", help="Accept any certificate (https).")] = False
    keep_cache: Annotated[bool, typer.Option("--keep-cache", help="Do not empty the prefix cache first.")] = False
    calibrate: Annotated[
        bool | None,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Measure the client's own error at this load first; runs of 30 s and more do, once a day.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RepeatedSendingFlags(SendingFlags):
    """The same for several runs that are compared."""

    drain: Annotated[
        str, typer.Option(help="Wait so long for the last answers; timeout: as long as a request may take.")
    ] = "timeout"


@dataclass(frozen=True, kw_only=True)
class LimitFlags:
    """What a run has to reach."""

    heading: ClassVar[str] = "Limits"

    slo: Slo = ""
    goodput: Goodput = ""
    fail_if: Annotated[
        list[str] | None,
        typer.Option("--fail-if", help="Exit with 1 if this holds: 'attainment<0.99', 'ttft.p99>200ms'."),
    ] = None
    allow_failures: Annotated[
        str, typer.Option(help="Share of failed requests above which a run exits with 3: 0.2 or 20%.")
    ] = "5%"


@dataclass(frozen=True, kw_only=True)
class PageFlags:
    """Locust's web page."""

    heading: ClassVar[str] = "Web page"

    web: Annotated[bool, typer.Option("--web", help="Locust's page with live charts.")] = False
    web_host: Annotated[str, typer.Option(help="Address of the page.")] = "127.0.0.1"
    web_port: Annotated[int, typer.Option(help="Port of the page.", min=1, max=65535)] = 8089


@dataclass(frozen=True, kw_only=True)
class ServerFlags:
    """A server that runs already."""

    heading: ClassVar[str] = "Server"

    server: Annotated[str | None, typer.Option(help="A launched server's name; the only one if left out.")] = None
    url: Annotated[str | None, typer.Option(help="Any OpenAI-compatible server instead: http://HOST:PORT.")] = None
    model: Annotated[str | None, typer.Option(help="Model name to ask for; the server's first if left out.")] = None
    max_model_len: Annotated[int | None, typer.Option(help="The server's limit, if it does not tell.", min=2)] = None
    policy: Annotated[
        str, typer.Option(help="Which of several replicas gets a request: round-robin, least-loaded or sticky.")
    ] = "round-robin"


@dataclass(frozen=True, kw_only=True)
class LaunchFlags:
    """A server that is launched, but for its model and method."""

    heading: ClassVar[str] = "Server"

    engine: Annotated[str, typer.Option(help="auto, or one of 'kvload methods': embedded, vllm, sglang ...")] = "auto"
    load_format: Annotated[str, typer.Option(help="auto, or dummy for random weights.")] = "auto"
    kv_memory: Annotated[str | None, typer.Option(help="Size of the KV cache, as in 512MiB.")] = None
    max_model_len: Annotated[int | None, typer.Option(help="Longest prompt and answer, in tokens.", min=1)] = None
    tensor_parallel: Annotated[
        int, typer.Option("--tensor-parallel", "-tp", help="Spread every layer of a server over so many GPUs.", min=1)
    ] = 1
    gpus: Annotated[
        str | None, typer.Option(help="GPUs to use, as in 0,1 or all. Arms that are compared run on them side by side.")
    ] = None
    python: Annotated[str | None, typer.Option(help="The Python (or environment) the engine is installed in.")] = None


@dataclass(frozen=True, kw_only=True)
class BesideFlags:
    """Arms side by side."""

    heading: ClassVar[str] = "Side by side"

    per_arm: Annotated[
        int | None, typer.Option(help="GPUs of one server; as many as it is spread over if left out.", min=1)
    ] = None
    serial: Annotated[bool, typer.Option("--serial", help="One run after the other, whatever --gpus says.")] = False
    place: Annotated[str, typer.Option(help="Where servers are started: local, or ray for a cluster's nodes.")] = (
        "local"
    )
    address: Annotated[str, typer.Option(help="With --place ray: the cluster's head, HOST:6379.")] = "auto"


def grouped(command: Callable[..., Result]) -> Callable[..., Result]:
    """A command whose parameters that are groups of options become those options.

    What typer sees is a function with one parameter for each field of the groups, in their place.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        group: Any = parameter.annotation
        if not dataclasses.is_dataclass(group):
            parameters.append(parameter)
            continue
        groups[parameter.name] = group
        heading, hints = getattr(group, "heading", None), get_type_hints(group, include_extras=True)
        for field in dataclasses.fields(group):
            # a copy: a command may also take the option by itself, outside the group
            option = copy.copy(hints[field.name].__metadata__[0])
            option.rich_help_panel = heading
            shown: Any = Annotated[hints[field.name].__origin__, option]
            parameters.append(
                inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=shown)
            )

    def run(**given: Any) -> Result:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        return command(**given, **made)

    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = signature.replace(parameters=keyword)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword}
    return run


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
        raise UsageError(message, where="TRACE", hint=usage)
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
