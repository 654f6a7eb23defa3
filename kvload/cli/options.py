"""Options that several commands have, each declared once.

A group of options is a frozen dataclass. A command that is decorated with :func:`grouped` takes the group as one
parameter, and its users see one option for each field: under a heading of the group's own, or among the first options
of ``--help`` where it is one of those that most people want.
"""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_type_hints

import typer
from typer.models import OptionInfo

Result = TypeVar("Result")

FIRST = "Options"
"""Heading of the options that ``--help`` shows first, which is typer's for those without any."""

RUN = "Run"

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
Start = Annotated[str, typer.Option(help="Use the trace from this time on: 90s, 5min.", metavar="TIME")]
End = Annotated[str | None, typer.Option(help="Use the trace up to this time.", metavar="TIME")]
Limit = Annotated[int | None, typer.Option("--limit", "--num-prompts", help="At most so many requests.", min=1)]
Sample = Annotated[float, typer.Option(help="Share of whole sessions to keep, 0 to 1.")]
ScaleInput = Annotated[float, typer.Option(help="Factor on the length of made-up prompts.")]
Seed = Annotated[int, typer.Option(help="Decides everything that is drawn.", min=0)]
Burstiness = Annotated[
    float | None,
    typer.Option(
        help="Shape of gamma gaps: 1 is Poisson, below comes in bursts.", min=0.001, rich_help_panel="Arrivals"
    ),
]
Model = Annotated[str | None, typer.Option(help="Model to launch; kvload's probe model if left out.")]
Slo = Annotated[
    str, typer.Option(help="Limits to meet: ttft=500ms,tpot=50ms; or published ones, see kvload slo.", metavar="LIMITS")
]
Goodput = Annotated[
    str, typer.Option(help="The same as vLLM writes it, in ms: ttft:200 tpot:50.", rich_help_panel="Limits")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
VerifyEach = Annotated[
    bool | None,
    typer.Option(
        "--verify/--no-verify",
        help="Check each server's cache first; done if left out, or as the folder of --resume says.",
        show_default=False,
        rich_help_panel="Comparison",
    ),
]


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
    shown_first: ClassVar[frozenset[str]] = frozenset({"limit"})

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
    shown_first: ClassVar[frozenset[str]] = frozenset({"rate", "concurrency"})

    speed: Annotated[float, typer.Option(help="Replay so many times as fast as recorded.")] = 1.0
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate", "--request-rate", help="Mean requests per second; inf sends all at once.", metavar="RATE"
        ),
    ] = None
    arrivals: Annotated[
        str | None, typer.Option(help="trace (as recorded), constant, poisson, gamma; trace if left out.")
    ] = None
    burstiness: Burstiness = None
    ramp: Annotated[str | None, typer.Option(help="Rates over time: 1-8/60s,8/2min.", metavar="RATES")] = None
    jitter: Annotated[str, typer.Option(help="Add up to so much to each recorded arrival.", metavar="TIME")] = "0s"
    concurrency: Annotated[int | None, typer.Option(help="Closed loop: so many in flight, times ignored.")] = None


@dataclass(frozen=True, kw_only=True)
class RequestFlags:
    """What is asked for in each request."""

    heading: ClassVar[str] = "Requests"
    shown_first: ClassVar[frozenset[str]] = frozenset({"mode"})

    mode: Annotated[
        Mode,
        typer.Option(
            metavar="MODE",
            help="free: answers end by themselves; forced: lengths as recorded; auto: forced if a trace has no texts.",
        ),
    ] = Mode.AUTO
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer, where the trace does not say.", min=1)
    ] = None
    too_long: Annotated[TooLong, typer.Option(help="What to do with requests over the server's limit.")] = TooLong.ERROR
    scale_input: ScaleInput = 1.0
    token_range: Annotated[str | None, typer.Option(help="Ids of made-up prompts: LOW-HIGH.")] = None
    temperature: Annotated[float | None, typer.Option(help="Override the trace's temperature.", min=0)] = None
    top_p: Annotated[float | None, typer.Option(help="Override the trace's top_p.")] = None
    token_ids: Annotated[bool, typer.Option("--token-ids", help="Ask for and record token ids.")] = False
    extra_body: Annotated[
        str | None, typer.Option(help="JSON object whose fields every request gets: '{\"top_k\": 1}'.")
    ] = None
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class SendingFlags:
    """How requests are sent."""

    heading: ClassVar[str] = "Sending"

    max_concurrency: Annotated[int | None, typer.Option(help="Most requests in flight; the others wait.")] = None
    warmups: Warmups = 4
    workers: Annotated[int, typer.Option(help="Processes that send.", min=0)] = 1
    timeout: Annotated[str, typer.Option(help="Most that a request may take; none for no limit.", metavar="TIME")] = (
        "10min"
    )
    drain: Annotated[str, typer.Option(help="Wait so long for the last answers.", metavar="TIME")] = "2min"
    header: Annotated[list[str] | None, typer.Option(help="'Name: value', sent along; may be repeated.")] = None
    metadata: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, kept with the run; may be repeated.", rich_help_panel=RUN)
    ] = None
    label: Annotated[str | None, typer.Option(help="What reports call the run.", rich_help_panel=RUN)] = None
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
            rich_help_panel=RUN,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RepeatedSendingFlags(SendingFlags):
    """The same for several runs that are compared."""

    drain: Annotated[
        str,
        typer.Option(help="Wait so long for the last answers; timeout: as long as a request may take.", metavar="TIME"),
    ] = "timeout"


@dataclass(frozen=True, kw_only=True)
class LimitFlags:
    """What a run has to reach."""

    heading: ClassVar[str] = "Limits"
    shown_first: ClassVar[frozenset[str]] = frozenset({"slo", "fail_if"})

    slo: Slo = ""
    goodput: Goodput = ""
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            help="Exit with 1 if this holds: 'attainment<0.99', 'ttft.p99>200ms'; may be repeated.",
            metavar="GATE",
        ),
    ] = None
    allow_failures: Annotated[
        str, typer.Option(help="Share of failed requests above which a run exits with 3: 0.2 or 20%.")
    ] = "5%"


@dataclass(frozen=True, kw_only=True)
class PageFlags:
    """Locust's web page."""

    heading: ClassVar[str] = "Web page"
    shown_first: ClassVar[frozenset[str]] = frozenset({"web"})

    web: Annotated[bool, typer.Option("--web", help="Locust's page with live charts.")] = False
    web_host: Annotated[str, typer.Option(help="Address of the page.")] = "127.0.0.1"
    web_port: Annotated[int, typer.Option(help="Port of the page.", min=1, max=65535)] = 8089


@dataclass(frozen=True, kw_only=True)
class ServerFlags:
    """A server that runs already."""

    heading: ClassVar[str] = "Server"
    shown_first: ClassVar[frozenset[str]] = frozenset({"server", "url", "model"})

    server: Annotated[str | None, typer.Option(help="Name of a launched server; the only one if left out.")] = None
    url: Annotated[
        str | None,
        typer.Option(help="Any OpenAI-compatible server instead, as in http://127.0.0.1:8000.", metavar="URL"),
    ] = None
    model: Annotated[str | None, typer.Option(help="Model name to ask for; the server's first if left out.")] = None
    max_model_len: Annotated[
        int | None, typer.Option(help="Longest prompt and answer in tokens, if the server does not say.", min=2)
    ] = None
    policy: Annotated[
        str, typer.Option(help="Which of several replicas gets a request: round-robin, least-loaded or sticky.")
    ] = "round-robin"


@dataclass(frozen=True, kw_only=True)
class LaunchFlags:
    """A server that is launched, but for its model and method."""

    heading: ClassVar[str] = "Server"
    shown_first: ClassVar[frozenset[str]] = frozenset({"engine", "kv_memory", "gpus"})

    engine: Annotated[str, typer.Option(help="auto, or one of 'kvload methods': embedded, vllm, sglang ...")] = "auto"
    load_format: Annotated[str, typer.Option(help="auto, or dummy for random weights.")] = "auto"
    kv_memory: Annotated[str | None, typer.Option(help="Size of the KV cache, as in 512MiB.", metavar="SIZE")] = None
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


_VALUES: Mapping[type, str] = {bool: "", int: "N", float: "X", str: "TEXT", Path: "PATH"}
"""What ``--help`` calls an option's value: in a word, and nothing for a switch."""


def _shown(annotation: Any, heading: str | None = None, *, is_first: bool = False) -> Any:
    """An option's annotation with a short name of its value, under its own heading or else this; others as they are.

    The option is copied: a command may take one by itself that is also a field of a group.
    """
    option = next((item for item in getattr(annotation, "__metadata__", ()) if isinstance(item, OptionInfo)), None)
    if option is None:
        return annotation
    option = copy.copy(option)
    kinds = [kind for kind in (annotation.__origin__, *get_args(annotation.__origin__)) if kind in _VALUES]
    kinds += [kind for item in get_args(annotation.__origin__) for kind in get_args(item) if kind in _VALUES]
    if option.metavar is None and kinds:
        option.metavar = _VALUES[kinds[0]]
    option.rich_help_panel = FIRST if is_first else option.rich_help_panel or heading
    return Annotated[annotation.__origin__, option]


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
            parameters.append(parameter.replace(annotation=_shown(group)))
            continue
        groups[parameter.name] = group
        heading, hints = getattr(group, "heading", None), get_type_hints(group, include_extras=True)
        first: frozenset[str] = getattr(group, "shown_first", frozenset())
        for field in dataclasses.fields(group):
            shown = _shown(hints[field.name], heading, is_first=field.name in first)
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
