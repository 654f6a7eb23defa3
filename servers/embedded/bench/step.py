"""What a step costs on a CPU in each way of computing it, in processor time.

``python -m kvload.servers.embedded.bench.step [--streams 1,64] [--model FOLDER]``

One thread, the model's whole forward pass over the cache, one token of every stream. Processor time does not count what
other work on the machine takes, so that the figures hold on a busy one (but for its share of the memory's bandwidth).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kvload.servers.catalogue.asked import parse_method
from kvload.servers.embedded.cache import build_cache
from kvload.servers.embedded.cache.api import StepEntry
from kvload.servers.embedded.model.model import Model, load_model
from kvload.servers.embedded.model.packed import can_pack

LLAMA_154M = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
"""A Llama of 154 million parameters: 8 layers, hidden size 1024."""


def step_seconds(model: Model, streams: int, steps: int, prompt: int = 32) -> float:
    """Least processor time of a step over ``streams`` sequences that each store ``prompt`` tokens and more."""
    cache = build_cache(model.geometry, parse_method("none"), 256 << 20)
    sequences: list[Any] = [cache.open() for _ in range(streams)]

    def step(chosen: Sequence[Any], new: int) -> None:
        for sequence in chosen:
            if not cache.reserve(sequence, new):
                raise MemoryError("the benchmark's pool is too small")
        plan = cache.plan([StepEntry(sequence, new, prompt) for sequence in chosen])
        ids = torch.randint(model.vocab_size, (new * len(chosen),))
        positions = torch.cat([torch.arange(each.length, each.length + new) for each in chosen])
        model.forward(ids, positions, torch.arange(len(chosen)) * new + new - 1, cache, plan)
        cache.commit(plan)

    for start in range(0, streams, 16):
        step(sequences[start : start + 16], prompt)
    taken = []
    for _ in range(steps):
        began = time.process_time()
        step(sequences, 1)
        taken.append(time.process_time() - began)
    return min(taken)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print milliseconds and tokens per processor second."""
    parser = argparse.ArgumentParser(prog="python -m kvload.servers.embedded.bench.step", description=__doc__)
    parser.add_argument("--model", help="model folder (default: a random Llama of 154 million parameters)")
    parser.add_argument("--streams", default="1,64", help="comma-separated (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(LLAMA_154M), encoding="utf-8")
        sys.stdout.write(f"{'computed in':<24}{'streams':>8}{'ms of CPU':>12}{'tokens/CPU s':>14}\n")
        for dtype, packed in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
            if packed and not can_pack(dtype, cpu):
                continue
            label = str(dtype).removeprefix("torch.") + (", packed" if packed else "")
            model = load_model(
                options.model or folder,
                load_format="auto" if options.model else "dummy",
                device=cpu,
                dtype=dtype,
                seed=0,
                on_progress=lambda _: None,
                pack_weights=packed,
            )
            for streams in map(int, options.streams.split(",")):
                seconds = step_seconds(model, streams, options.steps)
                sys.stdout.write(f"{label:<24}{streams:>8}{1e3 * seconds:>12.1f}{streams / seconds:>14.0f}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
