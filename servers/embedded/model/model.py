"""A Hugging Face causal language model as one packed forward pass over the engine's KV cache."""

import copy
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from kvload.errors import UsageError
from kvload.servers.embedded.cache.api import CacheGeometry, KVCache
from kvload.servers.embedded.model.attention import ATTENTION_NAME, Probe, StepContext, attention
from kvload.servers.embedded.model.graph import Recording
from kvload.servers.embedded.model.packed import PackedLinear, can_pack, pack
from kvload.servers.embedded.model.support import check_config, context_limit, text_config
from kvload.servers.host.machine import has_bfloat16
from kvload.servers.kernels.attention import AttentionExtras

logger = logging.getLogger(__name__)

LoadFormat = Literal["auto", "dummy"]


@dataclass(frozen=True)
class Model:
    """A loaded model.

    Attributes:
        module: the causal language model, its attention replaced by ours.
        geometry: shape of its keys and values.
        extras: what each layer adds to plain attention.
        vocab_size: columns of its output.
        context_limit: positions it can take; None where unknown.
        eos_ids: tokens that end an answer.
        recording: the recorded forward pass; None where the model is run as it is.
        packed_layers: linear layers whose weights were brought into the processor's own order.
    """

    module: Any
    geometry: CacheGeometry
    extras: tuple[AttentionExtras, ...]
    vocab_size: int
    context_limit: int | None
    eos_ids: frozenset[int]
    recording: Recording | None = None
    packed_layers: int = 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that a step reads."""
        parameters = {part.data_ptr(): part.nbytes for part in self.module.parameters()}
        packed_bytes = [layer.weight_bytes for layer in self.module.modules() if isinstance(layer, PackedLinear)]
        return int(sum(parameters.values()) + sum(packed_bytes))

    @torch.inference_mode()
    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor, cache: KVCache, plan: Any
    ) -> torch.Tensor:
        """One step over packed sequences.

        Args:
            ids, positions: ``(tokens,)``, the sequences of the plan one after the other; positions are logical.
            keep: rows whose logits are wanted, ``(rows,)``.
            cache, plan: where keys and values go.

        Returns:
            logits, ``(rows, vocab_size)``, float32.
        """
        step = StepContext(cache, plan, self.extras)
        if self.recording is not None:
            return self.recording(ids, positions, keep, step)
        return run_module(self.module, ids, positions, keep, step)


def run_module(module: Any, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor, step: Any) -> torch.Tensor:
    """The model's own forward pass; see :meth:`Model.forward`."""
    if "logits_to_keep" in inspect.signature(type(module).forward).parameters:
        chosen, rows = {"logits_to_keep": keep}, slice(None)
    else:
        chosen, rows = {}, keep  # type: ignore[assignment]
    output = module(
        input_ids=ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False, kvload_step=step, **chosen
    )
    logits: torch.Tensor = output.logits[0][rows].float()
    return logits


def load_model(
    name: str,
    *,
    load_format: LoadFormat,
    device: torch.device,
    dtype: torch.dtype | None,
    seed: int,
    on_progress: Callable[[str], None],
    pack_weights: bool = True,
) -> Model:
    """Load a model and find out what its layers ask of attention.

    Args:
        name: a folder with ``config.json`` (and weights, unless ``load_format`` is ``dummy``), or a name on the hub.
        load_format: ``dummy`` makes random weights, the same for the same seed.
        device: where it runs.
        dtype: of weights and cache; None for the configuration's, on a CPU only where it has the instructions for it
            (float32 otherwise: its 16-bit arithmetic is then several times slower).
        seed: of random weights.
        on_progress: told what is being done.
        pack_weights: bring them into the processor's own order where that makes products faster.

    Raises:
        UsageError: the folder cannot be read, or the engine cannot serve the model.
    """
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

    on_progress("loading config")
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UsageError("there is no such model folder", where=name)
    try:
        config = copy.deepcopy(AutoConfig.from_pretrained(name))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"the model's configuration cannot be read: {error}", where=name) from error
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    check_config(config, model_class, name)
    AttentionInterface.register(ATTENTION_NAME, attention)
    if dtype is None:
        dtype = default_dtype(config, device)
    on_progress("loading weights" if load_format == "auto" else "making random weights")
    try:
        if load_format == "dummy":
            torch.manual_seed(seed)
            with torch.device(device):
                module = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION_NAME, dtype=dtype)
            module.to(device)
        else:
            module = AutoModelForCausalLM.from_pretrained(
                name, config=config, attn_implementation=ATTENTION_NAME, dtype=dtype
            ).to(device)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(
            f"the model cannot be loaded: {error}", where=name, hint="--load-format dummy makes random weights"
        ) from error
    model = inspect_model(module.eval(), name)
    return record(packed(model) if pack_weights else model)


def inspect_model(module: Any, name: str) -> Model:
    """Run a model once, without a cache, to learn its geometry and its layers' extras.

    Args:
        module: a causal language model whose attention is ours.
        name: the model as the user named it.

    Raises:
        UsageError: its layers do something the cache cannot stand for.
    """
    # A padding row matters to training alone; while the pass is recorded, torch fails at comparing it with a size.
    module.get_input_embeddings().padding_idx = None
    config = text_config(module.config)
    parameters = inspect.signature(type(module).forward).parameters
    embeddings = module.get_input_embeddings().weight
    probe = Probe()
    ids = torch.zeros(2, dtype=torch.long, device=embeddings.device)
    try:
        if "position_ids" not in parameters:
            raise ValueError("it takes no position ids")
        with torch.inference_mode():
            logits = run_module(module, ids, torch.arange(2, device=ids.device), ids[:1], probe)
        geometry, extras = probe.result(config, embeddings.dtype, embeddings.device)
    except (ValueError, TypeError) as error:
        raise UsageError(f"the embedded engine cannot serve this model: {error}", where=name) from error
    return Model(
        module=module,
        geometry=geometry,
        extras=tuple(extras),
        vocab_size=int(logits.shape[-1]),
        context_limit=context_limit(module.config),
        eos_ids=_eos_ids(module),
    )


def packed(model: Model) -> Model:
    """The model with its linear layers packed, where that makes them faster."""
    geometry = model.geometry
    if not can_pack(geometry.dtype, geometry.device):
        return model
    ids = torch.arange(8, device=geometry.device) % model.vocab_size

    def check() -> torch.Tensor:
        with torch.inference_mode():
            return run_module(model.module, ids, torch.arange(8, device=geometry.device), ids, Probe())

    return replace(model, packed_layers=pack(model.module, check))


def record(model: Model) -> Model:
    """The model with its forward pass recorded, or as it was where that cannot be done (the log says why)."""
    try:
        recording = Recording(model.module, partial(run_module, model.module), model.vocab_size, model.geometry.device)
    except ValueError as error:
        logger.warning("%s; it runs as it is, more slowly", error)
        return model
    return replace(model, recording=recording)


def _eos_ids(module: Any) -> frozenset[int]:
    found: set[int] = set()
    for config in (module.config, text_config(module.config), getattr(module, "generation_config", None)):
        value = getattr(config, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or [])
    return frozenset(found)


def default_dtype(config: Any, device: torch.device) -> torch.dtype:
    """The dtype that a model of this configuration runs in where the user names none.

    On a GPU the configuration's if it is one of 16 bits, else bfloat16. On a CPU bfloat16 for a model of 16 bits where
    the processor has instructions for it, else float32.
    """
    configured = getattr(text_config(config), "dtype", None) or getattr(config, "dtype", None)
    narrow = torch.float16 if configured == torch.float16 else torch.bfloat16 if configured == torch.bfloat16 else None
    if device.type == "cpu":
        return torch.bfloat16 if narrow is not None and has_bfloat16() else torch.float32
    return narrow or torch.bfloat16
