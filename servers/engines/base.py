"""What the launcher asks of an engine: one :class:`Adapter` for each, and the table of them.

An adapter knows how its engine is started, what it says while it loads, and what it can do. It starts nothing itself.
"""

import importlib
import importlib.metadata
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kvload.errors import UsageError
from kvload.servers.catalogue.asked import MethodSpec, RawDtype, read_method
from kvload.servers.engines.arguments import counted, has_flag
from kvload.servers.engines.metrics import EngineMetrics
from kvload.servers.engines.scheduling import Scheduling
from kvload.servers.host.machine import Machine
from kvload.servers.host.model_facts import ModelFacts
from kvload.servers.probe import MODEL_DIR


@dataclass(frozen=True)
class LaunchRequest:
    """A server as the user wants it.

    Attributes:
        model: a folder, or a name of the Hugging Face hub; the probe model where None.
        engine: ``auto`` or a name in the table of adapters.
        method: a method's name with options (``kivi-4:group=32``), or ``raw:NAME`` for an engine's own KV-cache dtype.
        name: in the registry; made from engine and method where None.
        port: a free one where None.
        load_format: ``auto``, or ``dummy`` for random weights.
        kv_memory: bytes of the KV cache, over all GPUs; the adapter's default where None.
        max_model_len: longest prompt and answer; the engine's own where None.
        tensor_parallel: GPUs that each hold a part of every layer.
        gpus: those it may use (see :mod:`kvload.servers.host.devices`); all that this process sees where empty.
        cpus: processors it may use; any where empty.
        group: name that it shares with its replicas; None for a server of its own.
        python: interpreter of the environment the engine is installed in; this one where None.
        engine_args: passed to the engine as they are.
        env: variables for the engine alone.
        verify: check the cache's size and soundness against the baseline's before the server is handed over.
        timeout_s: how long the start may take; the adapter's default where None.
    """

    model: str | None = None
    engine: str = "auto"
    method: str = "none"
    name: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    load_format: str = "auto"
    kv_memory: int | None = None
    max_model_len: int | None = None
    tensor_parallel: int = 1
    gpus: tuple[str, ...] = ()
    cpus: tuple[int, ...] = ()
    group: str | None = None
    python: str | None = None
    engine_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    verify: bool = False
    timeout_s: float | None = None

    @cached_property
    def chosen(self) -> MethodSpec | RawDtype:
        """``method``, read.

        Raises:
            UsageError: it is none.
        """
        return read_method(self.method)


@dataclass(frozen=True)
class Build:
    """An engine as it is installed.

    Attributes:
        python: the interpreter it is started with.
        version: None where it could not be read.
        device: ``cpu`` or ``cuda``: what it will run on.
        release: the version's numbers, empty where unknown.
        dtypes: KV-cache dtypes it accepts, read from its source; None where that was not found.
        problem: what is wrong with the installation, if something is.
    """

    engine: str
    python: str
    version: str | None
    device: str
    release: tuple[int, ...] = ()
    dtypes: frozenset[str] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Claim:
    """What a method claims to hold: bytes per token over all layers and KV heads, and the baseline's for the same.

    ``element_bytes`` are those of an uncompressed element: 2 for 16-bit types, 4 for float32.
    """

    bytes_per_token: float
    baseline_bytes_per_token: float
    element_bytes: int = 2

    @property
    def ratio(self) -> float:
        """How many times more tokens than the baseline's the same memory holds."""
        return self.baseline_bytes_per_token / self.bytes_per_token


@dataclass(frozen=True)
class EvictionProof:
    """A request that a method must free blocks of, and what shows it.

    Attributes:
        prompt_tokens: of the request.
        freed_blocks: that it loses at the end of its prompt at the latest.
        kept_tokens: most that its other blocks hold then.
    """

    prompt_tokens: int
    freed_blocks: int
    kept_tokens: int


@dataclass(frozen=True)
class LaunchPlan:
    """How a server is started.

    Attributes:
        command: the whole command line.
        env: variables set for it on top of the user's.
        unset: variables taken out of its environment.
        claim: None where the model's shape or the method's figures are not known.
        pool_claim: what the pool's size in tokens is held against, where that is another figure than ``claim``: an
            engine may count only the tokens it keeps.
        compresses: whether the method is meant to store tokens in fewer bytes.
        error_limit: how much of the context's effect on the answers the method may lose and still count as sound (see
            :mod:`kvload.servers.verification.verify`); None where that follows from how much room it makes.
        eviction: how it is seen that a method of eviction frees blocks; None where the server tells nothing of it.
        prefix_cache: ``off``, ``on``, or ``reset`` where kvload can empty it.
        notes: what the user should know.
    """

    command: tuple[str, ...]
    env: Mapping[str, str]
    served_name: str
    claim: Claim | None = None
    pool_claim: Claim | None = None
    compresses: bool = True
    error_limit: float | None = None
    eviction: EvictionProof | None = None
    prefix_cache: str = "off"
    unset: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Offer:
    """A method of one engine.

    Attributes:
        engine: the engine's name.
        setting: how the engine calls it; its own name for the embedded engine.
        bytes_per_token: per layer and KV head, in a sequence of :data:`kvload.servers.catalogue.claims.CLAIM_TOKENS`
            tokens at head size :data:`kvload.servers.catalogue.claims.CLAIM_HEAD_DIM` in 16-bit precision.
        note: what else is known.
    """

    engine: str
    setting: str
    bytes_per_token: float
    note: str = ""


@dataclass(frozen=True)
class Said:
    """What a running server says about itself.

    Attributes:
        info: the document at the adapter's ``info_path``; empty where there is none.
        labels: of its ``cache_config_info`` metric; empty where there is none.
    """

    info: Mapping[str, Any]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Reported:
    """A server's own account in kvload's words; None where it does not say.

    Attributes:
        method: a method's name, or ``raw:NAME`` for the engine's own KV-cache dtype: a claim, not a proof.
        prefix_cache: ``on`` or ``off``.
    """

    method: str | None = None
    prefix_cache: str | None = None
    pool_tokens: int | None = None
    max_model_len: int | None = None


class Adapter(ABC):
    """One engine: all that kvload knows of it.

    Attributes:
        name: what the user types.
        start_timeout_s: how long a start may take by default.
        start_estimate_s: how long it usually takes, for the estimate of an experiment's duration alone.
        stop_grace_s: how long an orderly end may take.
        reset_path: where a POST empties the prefix cache; None where nothing does.
        info_path: where the server says what it is.
        metrics: where its figures come from; None where it has none.
        scoring: how the log-likelihood of a text is read off the cache: a name in ``verification.likelihood``.
        pool_memory: finds in the log the pool's tokens, and the GiB of its keys and of its values; None where it tells
            none.
        pool_in_tokens: what ``--kv-memory`` is turned into tokens by, in words, where the engine takes no bytes: then
            the pool's size shows nothing of the method.
        reads_gguf: whether it takes a GGUF file in place of a folder.
        in_kvload: whether it is part of kvload.
        extra: what installs it beside kvload (``pip install 'kvload[EXTRA]'``); its name where None.
        auto_on_gpu: whether ``--engine auto`` takes it where a GPU and it are there.
        streams_chat_token_ids: whether a streamed chat can carry token ids.
        tensor_flags: its arguments that say over how many GPUs every layer is spread, the one kvload sets first; empty
            where it cannot.
        stage_flags, copy_flags: those that say over how many stages its layers are spread (pipeline parallel), and how
            many copies of it are behind one port (data parallel).
        scheduling: the limits of its scheduler, for predictions.
        progress_lines: what lines of its log say about the start: expression, and the words with its groups.
    """

    name: str
    start_timeout_s: float = 600.0
    start_estimate_s: float = 60.0
    stop_grace_s: float = 10.0
    reset_path: str | None = None
    info_path: str = "/version"
    metrics: EngineMetrics | None = None
    scoring: str = "forced"
    pool_memory: re.Pattern[str] | None = None
    pool_in_tokens: str | None = None
    reads_gguf: bool = False
    in_kvload: bool = False
    extra: str | None = None
    auto_on_gpu: bool = False
    streams_chat_token_ids: bool = True
    tensor_flags: tuple[str, ...] = ()
    stage_flags: tuple[str, ...] = ()
    copy_flags: tuple[str, ...] = ()
    scheduling: Scheduling = Scheduling("--max-num-seqs", "--max-num-batched-tokens", "--block-size", 256, 2048, 16)
    progress_lines: tuple[tuple[re.Pattern[str], str], ...] = ()

    @abstractmethod
    def find(self, python: str | None, env: Mapping[str, str], machine: Machine) -> Build | None:
        """The engine in an environment; None where it is not installed there.

        Raises:
            UsageError: the Python does not run.
        """

    @abstractmethod
    def plan(self, request: LaunchRequest, port: int, build: Build, model: ModelFacts, machine: Machine) -> LaunchPlan:
        """The command line, after checking that the engine can do what is asked.

        Raises:
            UsageError: it cannot; the message says why, the hint what it can do instead.
        """

    def progress(self, line: str) -> str | None:
        """What a line of the log says about the start, in a few words; None where it says nothing."""
        for expression, text in self.progress_lines:
            if match := expression.search(line.strip()):
                return text.format(*match.groups())
        return None

    def offers(self) -> Mapping[str, Offer]:
        """The methods it has, by name."""
        return {}

    def shared_arguments(self, methods: Sequence[str], arguments: tuple[str, ...]) -> tuple[str, ...]:  # noqa: ARG002
        """Arguments that all arms of a comparison must take on for their methods alone to tell them apart.

        Args:
            methods: those compared, as users give them.
            arguments: what all arms have already.
        """
        return ()

    def reported(self, said: Said) -> Reported:
        """What a running server's own account means."""
        del said
        return Reported()

    def graph_streams(self, command: Sequence[str], log: str) -> int | None:  # noqa: ARG002
        """How many requests at once CUDA graphs cover in a running server, 0 for none; None where that is not known.

        Args:
            command: it was started with.
            log: the beginning of its log, up to its first answer.
        """
        return None

    def ranks(self, request: LaunchRequest) -> int:
        """GPUs that hold a part of every layer each: as asked of kvload, or of the engine in its own words.

        Raises:
            UsageError: the engine cannot spread a layer, the two disagree, or there are fewer GPUs than that.
        """
        asked = request.tensor_parallel
        own = counted(request.engine_args, self.tensor_flags)
        if asked > 1 and not self.tensor_flags:
            raise UsageError(f"{self.name} computes on one device", where=f"--tensor-parallel {asked}")
        if asked > 1 and own is not None and own != asked:
            raise UsageError(f"the engine's own arguments say {own}", where=f"--tensor-parallel {asked}")
        ranks = own or asked
        if request.gpus and len(request.gpus) < ranks:
            raise UsageError(
                f"{ranks} GPUs are needed, and {len(request.gpus)} named",
                where=f"--gpus {','.join(request.gpus)}",
                hint="name as many as --tensor-parallel says",
            )
        return ranks

    def copies(self, request: LaunchRequest) -> int:
        """Engines behind the server's port, each with a pool of its own (data parallel)."""
        return counted(request.engine_args, self.copy_flags) or 1

    def width(self, request: LaunchRequest) -> int:
        """GPUs of a whole server: ranks of every layer, in every stage, of every copy.

        Raises:
            UsageError: as :meth:`ranks`.
        """
        stages = counted(request.engine_args, self.stage_flags) or 1
        return self.ranks(request) * stages * self.copies(request)

    def spread(self, request: LaunchRequest) -> tuple[str, ...]:
        """The engine's argument for :meth:`ranks`, where its own do not hold it already."""
        ranks = self.ranks(request)
        if ranks == 1 or has_flag(request.engine_args, *self.tensor_flags):
            return ()
        return (self.tensor_flags[0], str(ranks))


ENTRY_POINTS = "kvload.engines"
"""Entry-point group in which an installed package names an engine of its own: ``name = module:AdapterClass``."""

ENGINES: Mapping[str, str] = {
    **{point.name: point.value for point in importlib.metadata.entry_points(group=ENTRY_POINTS)},
    "embedded": "kvload.servers.engines.embedded.adapter:EmbeddedAdapter",
    "vllm": "kvload.servers.engines.vllm.adapter:VllmAdapter",
    "sglang": "kvload.servers.engines.sglang.adapter:SglangAdapter",
}
"""Engine name to its adapter's class."""


def adapters() -> Iterator[Adapter]:
    """Every engine's adapter."""
    return (adapter(name) for name in ENGINES)


def adapter(engine: str) -> Adapter:
    """The adapter of an engine.

    Raises:
        UsageError: there is no such engine.
    """
    place = ENGINES.get(engine)
    if place is None:
        raise UsageError(f"no engine '{engine}'", where="--engine", hint=f"known: auto, {', '.join(ENGINES)}")
    module, _, name = place.partition(":")
    make: Callable[[], Adapter] = getattr(importlib.import_module(module), name)
    return make()


def known(engine: str | None) -> Adapter | None:
    """The adapter of an engine that a server or a run names; None for one that kvload does not know."""
    return adapter(engine) if engine is not None and engine in ENGINES else None


def served_name(model: ModelFacts) -> str:
    """The name a model gets in the API: its folder's, the hub's, or ``probe`` for kvload's own."""
    if model.folder is not None and model.folder == MODEL_DIR:
        return "probe"
    if model.folder is None:
        # A hub's name as it is; a file that the engine reads itself without its folder.
        return Path(model.name).stem if model.name.endswith(".gguf") else model.name
    return model.folder.name if Path(model.name).expanduser().is_dir() else model.name
