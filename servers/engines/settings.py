"""A row for each KV-cache setting of an engine: what it is called there, what it claims, and where it works.

The rows are in :mod:`kvload.servers.engines.vllm.settings` and :mod:`kvload.servers.engines.sglang.settings`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvload.errors import UsageError
from kvload.servers.catalogue.asked import MethodSpec, RawDtype, nearest
from kvload.servers.catalogue.claims import CLAIM_HEAD_DIM, CLAIM_TOKENS, Stored
from kvload.servers.catalogue.methods import METHODS
from kvload.servers.engines.base import Build, Claim
from kvload.servers.host.machine import Machine
from kvload.servers.host.model_facts import ModelFacts


@dataclass(frozen=True)
class Setting:
    """One method as one engine offers it.

    Attributes:
        method: what the user types; the same name for every engine.
        dtype: the engine's own name, the value of ``--kv-cache-dtype``.
        bytes_per_token: bytes per token, layer and KV head, keys and values together, from the head size; None where
            that is the uncompressed model's.
        since: first version of the engine known to have it.
        capability: lowest compute capability of a GPU it works on; None where it works on none.
        cpu: whether the engine's CPU build serves it soundly.
        skipped_layers: layers left uncompressed, half of them at each end of the model.
        arguments: further arguments it needs.
        error_limit: how much of the context's effect on the answers it may lose and still count as sound (see
            :mod:`kvload.servers.verification.verify`); None where that follows from how much room it makes.
        plugin: whether kvload's plugin brings it into the engine.
        backend: attention backend that the engine takes for it, for the record.
        note: what else is known.
    """

    method: str
    dtype: str
    bytes_per_token: Callable[[int], float] | None
    since: tuple[int, ...] = ()
    capability: tuple[int, int] | None = (8, 0)
    cpu: bool = False
    skipped_layers: int = 0
    arguments: tuple[str, ...] = ()
    error_limit: float | None = 0.3
    plugin: bool = False
    backend: str = ""
    note: str = ""


PLAIN_DTYPES = frozenset({"auto", "bfloat16", "float16", "bf16"})
"""KV-cache dtypes of 16 bits: as ``raw:`` they are a choice, not a compression."""

PLAIN = Setting("raw", "", None, capability=(0, 0), cpu=True, error_limit=0.2)
UNKNOWN = Setting(
    "raw", "", None, capability=(0, 0), cpu=True, error_limit=None, note="kvload knows nothing of this setting"
)


def pick(settings: Mapping[str, Setting], chosen: MethodSpec | RawDtype, engine: str) -> tuple[Setting, str, bool]:
    """The row and the engine's dtype for a method, and whether it was named as a method of kvload's.

    ``raw:NAME`` takes the row of that dtype, if there is one.

    Raises:
        UsageError: the engine has no such method.
    """
    if isinstance(chosen, RawDtype):
        if chosen.dtype in PLAIN_DTYPES:
            return PLAIN, chosen.dtype, False
        return next((row for row in settings.values() if row.dtype == chosen.dtype), UNKNOWN), chosen.dtype, False
    row = settings.get(chosen.name)
    if row is None:
        raise UsageError(
            f"{engine} has no method '{chosen.name}'",
            where="--method",
            hint=f"{nearest(chosen.name, settings)}its methods: {', '.join(settings)};"
            " raw:NAME passes one of its own KV-cache dtypes through",
        )
    return row, row.dtype, True


def obstacle(row: Setting, build: Build, model: ModelFacts, machine: Machine) -> str | None:
    """Why an installed engine cannot run a row here with this model; None where nothing is known against it."""
    if row.dtype == "auto":
        return _too_old_a_gpu(row, machine) if row.plugin and build.device == "cuda" else None
    version = build.version or "of unknown version"
    if build.dtypes is not None and row.dtype not in build.dtypes:
        return f"{build.engine} {version} does not know the KV-cache dtype {row.dtype}"
    if build.dtypes is None and build.release and build.release < row.since:
        return f"{row.method} is known from {build.engine} {'.'.join(map(str, row.since))} on; {version} is installed"
    if build.device == "cpu":
        if not row.cpu:
            return f"{build.engine}'s CPU build accepts {row.dtype} but corrupts the cache with it"
        if not machine.has_avx512:
            return f"{build.engine}'s CPU build quantises the cache only on processors with AVX-512 or AMX"
        if model.head_size is not None and model.head_size % 32:
            return f"{build.engine}'s CPU build quantises only head sizes divisible by 32, not {model.head_size}"
        return None
    if row.capability is None:
        return f"{build.engine} has no attention backend for {row.dtype} on NVIDIA GPUs"
    if against := _too_old_a_gpu(row, machine):
        return against
    if row.skipped_layers and model.layers is not None and model.layers <= row.skipped_layers:
        return f"{row.method} leaves {row.skipped_layers} layers uncompressed, and the model has only {model.layers}"
    return None


def _too_old_a_gpu(row: Setting, machine: Machine) -> str | None:
    for gpu in machine.gpus:
        if gpu.capability is not None and row.capability is not None and gpu.capability < row.capability:
            wanted = _dotted(row.capability)
            return f"{row.method} needs a GPU of compute capability {wanted}; {gpu.name} has {_dotted(gpu.capability)}"
    return None


def compresses(row: Setting) -> bool:
    """Whether a row is meant to store tokens in fewer bytes."""
    return row is UNKNOWN or row.bytes_per_token is not None


def refuse_obstacle(
    settings: Mapping[str, Setting], row: Setting, build: Build, model: ModelFacts, machine: Machine
) -> None:
    """Refuse what cannot work, and say what can.

    Raises:
        UsageError: there is an obstacle.
    """
    against = obstacle(row, build, model, machine)
    if against is None:
        return
    possible = [name for name, other in settings.items() if obstacle(other, build, model, machine) is None]
    raise UsageError(
        against,
        where=f"--method {row.method}",
        hint=f"it can do here: {', '.join(possible)}; raw:{row.dtype} starts it all the same, and --verify judges it",
    )


def stated_bytes(row: Setting) -> float:
    """Bytes per token, layer and KV head, where no model is given; the catalogue's for methods that evict."""
    if row.plugin and row.bytes_per_token is None:
        method = METHODS[row.method]
        options = {option.name: option.default for option in method.options}
        return method.claim(Stored(CLAIM_TOKENS, CLAIM_HEAD_DIM, 2, options))
    return 2.0 * CLAIM_HEAD_DIM * 2 if row.bytes_per_token is None else row.bytes_per_token(CLAIM_HEAD_DIM)


def claim_of(row: Setting, model: ModelFacts, element_bytes: int) -> Claim | None:
    """Bytes per token of a whole model under a row, and uncompressed; None where the model's shape does not say.

    Args:
        element_bytes: of an uncompressed key's element.
    """
    if model.layers is None or model.kv_heads is None or model.head_size is None or model.latent or row is UNKNOWN:
        return None
    plain = 2.0 * model.head_size * element_bytes
    packed = plain if row.bytes_per_token is None else row.bytes_per_token(model.head_size)
    skipped = min(row.skipped_layers, model.layers)
    total = model.kv_heads * (skipped * plain + (model.layers - skipped) * packed)
    return Claim(total, model.kv_heads * model.layers * plain, element_bytes)


def element_bytes(dtype: str | None, model: ModelFacts) -> int:
    """Bytes of an uncompressed element: engines run a float32 model in 16 bits unless told otherwise."""
    chosen = dtype if dtype not in {None, "auto"} else model.dtype
    return 4 if dtype not in {None, "auto"} and chosen in {"float32", "float"} else 2


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
