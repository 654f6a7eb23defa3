"""Decoding steps through the memory that graphs read: padded, beside others, grown; the capture itself needs a GPU."""

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

from kvload.servers.catalogue.asked import parse_method
from kvload.servers.embedded.cache import build_cache
from kvload.servers.embedded.cache.api import StepEntry
from kvload.servers.embedded.model.decode_graphs import DecodeGraphs, graphs_for
from kvload.servers.embedded.model.model import load_model
from tests.servers.embedded.tiny_models import tiny_config

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Replayed(DecodeGraphs):
    """Where there is no GPU, replaying is running the same step again over the same memory."""

    captures = 0

    def _capture(self, step: Any, rows: int) -> tuple[Any, torch.Tensor]:
        self.captures += 1
        if DEVICE.type == "cuda":
            return super()._capture(step, rows)
        logits = self._forward(step, rows)

        return SimpleNamespace(replay=lambda: logits.copy_(self._forward(step, rows))), logits


def test_replayed_steps_are_the_steps_as_they_are(tmp_path: Any) -> None:
    tiny_config("llama", num_hidden_layers=1, head_dim=32).save_pretrained(tmp_path)
    model = load_model(
        str(tmp_path), load_format="dummy", device=DEVICE, dtype=None, seed=0, on_progress=lambda _: None
    )
    caches = [build_cache(model.geometry, parse_method("int4"), 1 << 20, kernels="triton") for _ in range(2)]
    for cache in caches:
        cache.kernels.kernels.programs = 2  # type: ignore[attr-defined]
    graphs = Replayed(model, caches[0], sizes=(1, 2, 4))  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(0)
    held: list[dict[str, Any]] = [{name: cache.open() for name in "abc"} for cache in caches]
    taken = 0
    for step in ([("a", 9), ("b", 5)], [("a", 1)], [("a", 1), ("b", 1)], [("c", 3)], [("b", 1), ("c", 1), ("a", 1)]):
        count = sum(new for _, new in step)
        ids = torch.randint(0, model.vocab_size, (count,), generator=random).to(DEVICE)
        found = []
        for cache, mine, replays in zip(caches, held, (True, False), strict=True):
            starts = [mine[name].length for name, _ in step]
            positions = torch.cat([torch.arange(s, s + new) for s, (_, new) in zip(starts, step, strict=True)])
            assert all(cache.reserve(mine[name], new) for name, new in step)
            plan = cache.plan([StepEntry(mine[name], new, 9) for name, new in step])
            keep = torch.arange(count, device=DEVICE)
            logits = graphs.run(ids, positions.to(DEVICE), plan) if replays else None
            taken += logits is not None
            found.append(
                model.forward(ids, positions.to(DEVICE), keep, cache, plan) if logits is None else logits.clone()
            )
            cache.commit(plan)
        torch.testing.assert_close(found[0], found[1], rtol=2e-3, atol=2e-3)
    assert taken == 3
    assert graphs.captures == 3  # 1, 2 and 4 rows


def test_a_cpu_and_the_reference_have_no_graphs(tmp_path: Any) -> None:
    tiny_config("llama", num_hidden_layers=1, head_dim=32).save_pretrained(tmp_path)
    on_cpu = torch.device("cpu")
    model = load_model(
        str(tmp_path), load_format="dummy", device=on_cpu, dtype=None, seed=0, on_progress=lambda _: None
    )
    assert graphs_for(model, build_cache(model.geometry, parse_method("int8"), 1 << 20), 8) is None
