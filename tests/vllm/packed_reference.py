"""Packed pages as kvload's vLLM plugin serves them, written a second time: plain torch on the model of transformers.

Nothing of the plugin and none of its pages are used: numbers are rounded by the embedded engine's own codecs, and one
boundary for each query says how many of the first tokens it sees as they are stored. A server's greedy tokens are fed
in, and for each it is said how far the reference's best logit lies above that of the token the server chose.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AutoModelForCausalLM

from kvload.servers.embedded.compression.int4 import Int4
from kvload.servers.embedded.compression.int8 import Int8
from kvload.servers.embedded.compression.kivi import Kivi
from kvload.servers.embedded.compression.leankv import LeanKV
from kvload.servers.kernels.quantise import random_hadamard

PAGE = 64


class Reference:
    """A model whose cache is packed.

    Args:
        path: the model's folder.
        method: ``none``, or one of the packed methods.
        rotate: whether ``int4`` rotates.
    """

    def __init__(self, path: Path, method: str, *, rotate: bool = True) -> None:
        self.method = method
        self.turned = method == "int4" and rotate
        self._stored = torch.zeros(0, dtype=torch.long)
        name = f"packed-reference-{id(self)}"
        AttentionInterface.register(name, self._attend)
        self.model = AutoModelForCausalLM.from_pretrained(path, attn_implementation=name, dtype=torch.float32).eval()

    @torch.no_grad()
    def gaps(self, prompt: Sequence[int], answer: Sequence[int], *, chunk: int = 1 << 20, hit: int = 0) -> torch.Tensor:
        """For each token of the answer, the reference's best logit minus that of the token.

        Args:
            chunk: most tokens of the prompt in one step.
            hit: first tokens that were found in the prefix cache.
        """
        ids = [*prompt, *answer[:-1]]
        self._stored = torch.tensor([self._boundary(place, len(prompt), chunk, hit) for place in range(len(ids))])
        logits = self.model(input_ids=torch.tensor([ids])).logits[0, len(prompt) - 1 :]
        found: torch.Tensor = logits.max(-1).values - logits[torch.arange(len(answer)), torch.tensor(answer)]
        return found

    def _boundary(self, place: int, prompt: int, chunk: int, hit: int) -> int:
        """How many of the first tokens the query at ``place`` sees as stored."""
        if self.method == "none":
            return 0
        if place < hit:  # as it was computed when it came into the prefix cache
            return self._boundary(place, prompt, chunk, 0)
        seen = place + 1
        if place < prompt:
            start = hit + (place - hit) // chunk * chunk
            if start == 0 or min(prompt, start + chunk) - start > 1:
                seen = start
        if not self.method.startswith("kivi"):
            return seen
        full = seen // PAGE * PAGE
        return max(0, full - PAGE, min(full, hit))

    def _attend(
        self, _module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: Any, **options: Any
    ) -> tuple[torch.Tensor, None]:
        scaling = options["scaling"]
        key, value = key[0], value[0]
        tokens = key.shape[1]
        stored_key, stored_value = self._rounded(key, value)
        grouped = query[0].view(key.shape[0], -1, tokens, key.shape[2])
        place = torch.arange(tokens)
        stored = place < self._stored[:, None]
        scores = torch.where(
            stored,
            torch.einsum("hgid,hjd->hgij", grouped, stored_key),
            torch.einsum("hgid,hjd->hgij", grouped, key),
        )
        weights = (scores * scaling).masked_fill(place > place[:, None], -torch.inf).softmax(-1)
        out = torch.einsum("hgij,hjd->hgid", weights * stored, stored_value)
        out += torch.einsum("hgij,hjd->hgid", weights * ~stored, value)
        return out.flatten(0, 1).transpose(0, 1)[None], None

    def _rounded(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``(heads, tokens, size)`` as they are read back; unfinished pages of KIVI as they are."""
        if self.method == "none":
            return key, value
        if self.method in {"int8", "int4"}:
            codec = Int8() if self.method == "int8" else Int4()
            size = key.shape[-1]
            turn = random_hadamard(size, 0) if self.turned else torch.eye(size)
            both = [codec.decode(codec.encode(x @ turn), torch.float32) @ turn.T for x in (key, value)]
            return both[0], both[1]
        if self.method in {"k8v4", "k4v2"}:
            level = LeanKV.high_precision if self.method == "k8v4" else LeanKV.low_precision
            data, scale, value_data, value_scale = level.encode(key, value)
            return level.decode_key(data, scale), level.decode_value(value_data, value_scale)
        kivi = Kivi(bits=int(self.method[-1]), group=PAGE)
        full = key.shape[1] // PAGE * PAGE
        key, value = key.clone(), value.clone()
        if full:
            pages = key[:, :full].transpose(0, 1).reshape(full // PAGE, PAGE, *key.shape[::2])
            key[:, :full] = kivi.decode_keys(kivi.encode_keys(pages, prompt=True)).flatten(0, 1).transpose(0, 1)
            tokens = value[:, :full].transpose(0, 1)
            value[:, :full] = kivi.decode_values(kivi.encode_values(tokens, prompt=True)).transpose(0, 1)
        return key, value
