"""The probe's network for training: a Llama written compactly, its layers' matrices stacked for the optimizer.

Same mathematics as transformers' ``LlamaForCausalLM`` (Touvron et al. 2023; grouped queries, SwiGLU, RMSNorm, rotary
positions of the rotate-half kind, tied embeddings); ``hub_weights`` gives the weights under its names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network."""

    vocab: int = 1216
    hidden: int = 256
    layers: int = 8
    heads: int = 8
    kv_heads: int = 2
    head_size: int = 64
    inner: int = 320
    positions: int = 4608
    rope_theta: float = 100_000.0
    norm_eps: float = 1e-5

    def hub_config(self, eos_id: int, bos_id: int, pad_id: int) -> dict[str, Any]:
        """``config.json`` of the same network for transformers, vLLM and SGLang."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "hidden_act": "silu",
            "max_position_embeddings": self.positions,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": bos_id,
            "eos_token_id": eos_id,
            "pad_token_id": pad_id,
            "initializer_range": 0.02,
            "use_cache": True,
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
        }


def _norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * gain.to(x.dtype)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions; x (tokens, heads, head_size), cos and sin (tokens, head_size)."""
    low, high = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-high, low), dim=-1) * sin[:, None]


def _front(
    x: Tensor, gain: Tensor, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, head_size: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise and project a layer's input; x (tokens, hidden) -> queries, keys, values (tokens, heads, head_size)."""
    x = _norm(x, gain, eps)
    query, key, value = (torch.unflatten(_linear(x, weight), -1, (-1, head_size)) for weight in (q, k, v))
    return _rotate(query, cos, sin), _rotate(key, cos, sin), value


def _back(
    x: Tensor, attended: Tensor, o: Tensor, gain: Tensor, gate: Tensor, up: Tensor, down: Tensor, eps: float
) -> Tensor:
    """Rest of a layer after attention: output projection and the gated MLP, both added to x (tokens, hidden)."""
    x = x + _linear(attended, o)
    inner = _norm(x, gain, eps)
    return x + _linear(F.silu(_linear(inner, gate)) * _linear(inner, up), down)


def _loss(x: Tensor, gain: Tensor, embedding: Tensor, targets: Tensor, weights: Tensor, eps: float) -> Tensor:
    """Sum over tokens of weight times cross entropy."""
    logits = _linear(_norm(x, gain, eps), embedding).float()
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()


class _Embed(torch.autograd.Function):
    """Embedding look-up whose gradient is a matrix product: free of atomics and of synchronisation."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.rows = table.size(0)
        return table.to(dtype)[tokens]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (tokens,) = ctx.saved_tensors
        chosen = (tokens == torch.arange(ctx.rows, device=tokens.device)[:, None]).to(grad.dtype)
        return (chosen @ grad).float(), None, None


class ProbeNetwork(nn.Module):
    """The network with float32 weights; computes in ``dtype``."""

    def __init__(self, shape: Shape, seed: int, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.shape = shape
        self.dtype = dtype
        rng = torch.Generator().manual_seed(seed)
        wide, narrow = shape.heads * shape.head_size, shape.kv_heads * shape.head_size

        def matrix(rows: int, columns: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape.layers, rows, columns, generator=rng) * scale * columns**-0.5)

        self.embedding = nn.Parameter(torch.randn(shape.vocab, shape.hidden, generator=rng) * 0.02)
        self.q = matrix(wide, shape.hidden, 0.6)
        self.k = matrix(narrow, shape.hidden, 0.6)
        self.v = matrix(narrow, shape.hidden, 0.6)
        self.o = matrix(shape.hidden, wide, 0.0)
        self.gate = matrix(shape.inner, shape.hidden, 0.6)
        self.up = matrix(shape.inner, shape.hidden, 0.6)
        self.down = matrix(shape.hidden, shape.inner, 0.0)
        self.attention_gain = nn.Parameter(torch.ones(shape.layers, shape.hidden))
        self.mlp_gain = nn.Parameter(torch.ones(shape.layers, shape.hidden))
        self.final_gain = nn.Parameter(torch.ones(shape.hidden))
        self._front: Callable[..., Any] = _front
        self._back: Callable[..., Any] = _back
        self._loss: Callable[..., Any] = _loss

    def compile_parts(self) -> None:
        """Compile what surrounds attention; one compilation serves all row lengths of the same number of tokens."""
        self._front, self._back, self._loss = (torch.compile(part, dynamic=False) for part in (_front, _back, _loss))

    def matrices(self) -> list[nn.Parameter]:
        """The stacked matrices of the layers, each (layers, rows, columns)."""
        return [self.q, self.k, self.v, self.o, self.gate, self.up, self.down]

    def tables(self, rows: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary positions for rows x length tokens, each (rows * length, head_size)."""
        size = self.shape.head_size
        frequencies = self.shape.rope_theta ** -(torch.arange(0, size, 2, device=device).float() / size)
        angles = torch.arange(length, device=device).float()[:, None] * frequencies
        angles = torch.cat((angles, angles), dim=-1).repeat(rows, 1)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def hidden(self, tokens: Tensor, tables: tuple[Tensor, Tensor], parts: bool = True) -> Tensor:
        """Last hidden states (rows * length, hidden) of token ids (rows, length); ``parts`` False: nothing compiled."""
        rows, length = tokens.shape
        front, back = (self._front, self._back) if parts else (_front, _back)
        shape = self.shape
        x: Tensor = _Embed.apply(self.embedding, tokens.flatten(), self.dtype)  # type: ignore[no-untyped-call]
        layers = zip(*(stack.unbind() for stack in (*self.matrices(), self.attention_gain, self.mlp_gain)), strict=True)
        for q, k, v, o, gate, up, down, attention_gain, mlp_gain in layers:
            query, key, value = (
                part.view(rows, length, -1, shape.head_size).transpose(1, 2)
                for part in front(x, attention_gain, q, k, v, *tables, shape.head_size, shape.norm_eps)
            )
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            attended = attended.transpose(1, 2).reshape(rows * length, -1)
            x = back(x, attended, o, mlp_gain, gate, up, down, shape.norm_eps)
        return x

    def loss(self, tokens: Tensor, weights: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Weighted cross entropy per unit of weight; ``weights`` (rows, length) belong to the PREDICTED token."""
        targets = F.pad(tokens[:, 1:], (0, 1)).flatten()
        weights = F.pad(weights[:, 1:], (0, 1)).flatten()
        x = self.hidden(tokens, tables)
        total: Tensor = self._loss(x, self.final_gain, self.embedding, targets, weights, self.shape.norm_eps)
        return total / weights.sum()

    @torch.no_grad()
    def predictions(self, tokens: Tensor) -> Tensor:
        """The likeliest next token after each token, (rows, length)."""
        x = self.hidden(tokens, self.tables(tokens.size(0), tokens.size(1), tokens.device), parts=False)
        best = [
            _linear(_norm(piece, self.final_gain, self.shape.norm_eps), self.embedding).argmax(-1)
            for piece in torch.split(x, 16384)
        ]
        return torch.cat(best).view(tokens.shape)

    def _hub_names(self) -> Iterator[tuple[str, Tensor]]:
        """Name in transformers' ``LlamaForCausalLM`` and part of a parameter here, for all weights."""
        yield "model.embed_tokens.weight", self.embedding
        yield "model.norm.weight", self.final_gain
        inside = {
            "self_attn.q_proj": self.q,
            "self_attn.k_proj": self.k,
            "self_attn.v_proj": self.v,
            "self_attn.o_proj": self.o,
            "mlp.gate_proj": self.gate,
            "mlp.up_proj": self.up,
            "mlp.down_proj": self.down,
            "input_layernorm": self.attention_gain,
            "post_attention_layernorm": self.mlp_gain,
        }
        for name, stack in inside.items():
            for layer, weight in enumerate(stack):
                yield f"model.layers.{layer}.{name}.weight", weight

    @torch.no_grad()
    def hub_weights(self) -> dict[str, Tensor]:
        """The weights under the names of transformers' ``LlamaForCausalLM``, in bfloat16 on the CPU."""
        return {name: weight.to("cpu", torch.bfloat16).contiguous() for name, weight in self._hub_names()}
