"""Eviction as kvload's vLLM plugin defines it, written a second time: plain torch on the model of transformers.

Nothing of the plugin is used. A server's greedy tokens are fed in, and for each of them it is said how far the
reference's best logit lies above that of the token the server chose: 0 where they agree, little where rounding decides.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AutoModelForCausalLM

BLOCK = 16


class Reference:
    """A model whose attention evicts.

    Args:
        path: the model's folder.
        method: ``none``, ``streamingllm``, ``snapkv``, ``h2o`` or ``h2o-prompt``.
        options: all options of the method.
        dtype: that it computes in.
    """

    def __init__(self, path: Path, method: str, dtype: torch.dtype = torch.float32, **options: int) -> None:
        self.method, self.options = method, options
        self.state: dict[int, dict[str, torch.Tensor]] = {}
        self.prompt = 0
        name = f"reference-{id(self)}"
        AttentionInterface.register(name, self._attend)
        self.model = AutoModelForCausalLM.from_pretrained(path, attn_implementation=name, dtype=dtype).eval()

    @torch.no_grad()
    def gaps(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """For each token of the answer, the reference's best logit minus that of the token."""
        logits = self.logits(prompt, answer)
        return logits.max(-1).values - logits[torch.arange(len(answer)), torch.tensor(answer)]

    @torch.no_grad()
    def greedy(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """The reference's own answer."""
        self._begin(len(prompt))
        found = [int(self._step(prompt, 0)[-1].argmax())]
        while len(found) < tokens:
            found.append(int(self._step(found[-1:], len(prompt) + len(found) - 1)[-1].argmax()))
        return found

    def logits(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """Logits ``(answer, vocabulary)`` that each token of the answer is chosen by."""
        self._begin(len(prompt))
        found = [self._step(prompt, 0)[-1:]]
        if self.method == "h2o":  # each token may evict
            found += [self._step([token], len(prompt) + place) for place, token in enumerate(answer[:-1])]
        elif len(answer) > 1:
            found.append(self._step(answer[:-1], len(prompt)))
        return torch.cat(found)

    def _begin(self, prompt: int) -> None:
        self.state.clear()
        self.prompt = prompt

    def _step(self, tokens: Sequence[int], start: int) -> torch.Tensor:
        position = torch.arange(start, start + len(tokens))[None]
        out = self.model(input_ids=torch.tensor([list(tokens)]), position_ids=position, use_cache=False)
        logits: torch.Tensor = out.logits[0].float()
        return logits

    def _attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        _mask: Any,
        scaling: float,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        heads, new = key.shape[1:3]
        layer = self.state.setdefault(
            module.layer_idx,
            {
                "key": key[0, :, :0],
                "value": value[0, :, :0],
                "position": torch.zeros(heads, 0, dtype=torch.int64),
                "score": torch.zeros(heads, 0),
                "count": torch.tensor(0),
            },
        )
        before = int(layer["count"])
        here = torch.arange(before, before + new)
        layer["count"] = torch.tensor(before + new)
        layer["key"] = torch.cat([layer["key"], key[0]], 1)
        layer["value"] = torch.cat([layer["value"], value[0]], 1)
        layer["position"] = torch.cat([layer["position"], here.expand(heads, -1)], 1)
        grouped = query[0].view(heads, -1, new, query.shape[-1])
        scores = torch.einsum("hgqd,hkd->hgqk", grouped.float(), layer["key"].float()) * scaling
        seen = layer["position"][:, None] <= here[:, None]
        if self.method == "streamingllm":
            near = layer["position"][:, None] > here[:, None] - self.options["recent"]
            seen &= near | (layer["position"][:, None] < self.options["start"])
        weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
        out = torch.einsum("hgqk,hkd->qhgd", weights, layer["value"].float())
        if self.method in {"snapkv", "h2o", "h2o-prompt"}:
            self._evict(layer, weights, before, before + new)
        return out.reshape(1, new, -1, query.shape[-1]).to(query.dtype), None

    def _evict(self, layer: dict[str, torch.Tensor], weights: torch.Tensor, before: int, after: int) -> None:
        """Score, and drop whole blocks' worth of tokens where their number has grown."""
        budget = self.options["budget"]
        old = functional.pad(layer["score"], (0, weights.shape[-1] - layer["score"].shape[-1]))
        if self.method != "h2o":
            if before:
                layer["score"] = old
                return
            newest, total = self.options["window" if self.method == "snapkv" else "recent"], self.prompt
            judges = newest if self.method == "snapkv" else self.prompt
            layer["score"] = weights[:, :, -judges:].sum((1, 2))
        else:
            newest, total = self.options["recent"], after
            layer["score"] = old + weights.sum((1, 2))
        kept = total - max(0, (total - budget) // BLOCK) * BLOCK
        drop = layer["key"].shape[1] - kept
        if drop <= 0:
            return
        candidates = layer["score"][:, : layer["score"].shape[1] - newest]
        if self.method == "snapkv":
            half = self.options["kernel"] // 2
            wide = functional.pad(candidates, (half, half))
            shifted = [wide[:, place : place + candidates.shape[1]] for place in range(2 * half + 1)]
            candidates = sum(shifted) / len(shifted)  # type: ignore[assignment]
        keep = candidates.topk(candidates.shape[1] - drop, -1).indices.sort(-1).values
        last = torch.arange(layer["score"].shape[1] - newest, layer["score"].shape[1]).expand(len(keep), -1)
        index = torch.cat([keep, last], 1)
        for name in ("score", "position"):
            layer[name] = layer[name].gather(1, index)
        for name in ("key", "value"):
            layer[name] = layer[name].gather(1, index[..., None].expand(-1, -1, layer[name].shape[-1]))
