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
from kvload.servers.embedded.model.support import check_config, context_limit, text_config
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
    """

    module: Any
    geometry: CacheGeometry
    extras: tuple[AttentionExtras, ...]
    vocab_size: int
    context_limit: int | None
    eos_ids: frozenset[int]
    recording: Recording | None = None

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
) -> Model:
    """Load a model and find out what its layers ask of attention.

    Args:
        name: a folder with ``config.json`` (and weights, unless ``load_format`` is ``dummy``), or a name on the hub.
        load_format: ``dummy`` makes random weights, the same for the same seed.
        device: where it runs.
        dtype: of weights and cache; None for the configuration's on a GPU and float32 on a CPU, whose 16-bit
            arithmetic is several times slower without special instructions.
        seed: of random weights.
        on_progress: told what is being done.

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
        dtype = torch.float32 if device.type == "cpu" else _configured_dtype(config)
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
    return record(inspect_model(module.eval(), name))


def inspect_model(module: Any, name: str) -> Model:
    """Run a model once, without a cache, to learn its geometry and its layers' extras.

    Args:
        module: a causal language model whose attention is ours.
        name: the model as the user named it.

    Raises:
        UsageError: its layers do something the cache cannot stand for.
    """
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


def _configured_dtype(config: Any) -> torch.dtype:
    configured = getattr(text_config(config), "dtype", None) or getattr(config, "dtype", None)
    return configured if configured in (torch.float16, torch.bfloat16) else torch.bfloat16
