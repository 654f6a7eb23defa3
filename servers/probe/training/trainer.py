"""The probe's training loop: curriculum, optimizers, held-out examinations, checkpoints."""

from __future__ import annotations

import json
import time
from random import Random

import torch
from torch import Tensor

from kvload.servers.probe.tasks.generator import TASKS, generate
from kvload.servers.probe.training.data import batches
from kvload.servers.probe.training.export import agreement, export
from kvload.servers.probe.training.network import ProbeNetwork, Shape
from kvload.servers.probe.training.step import TrainingStep
from kvload.servers.probe.training.tokenizer import (
    ASSISTANT_ID,
    BEGIN_ID,
    END_ID,
    PAD_ID,
    USER_ID,
    WordEncoder,
    build_vocabulary,
)
from kvload.servers.probe.training.train import Recipe

CURRICULUM: tuple[tuple[float, dict[int, float]], ...] = (
    (0.12, {144: 1.0}),
    (0.30, {144: 0.3, 288: 0.7}),
    (0.45, {288: 0.6, 576: 0.4}),
    (0.60, {288: 0.4, 576: 0.3, 1152: 0.3}),
    (0.75, {288: 0.3, 576: 0.2, 1152: 0.25, 2304: 0.25}),
    (1.00, {288: 0.15, 576: 0.15, 1152: 0.2, 2304: 0.25, 4608: 0.25}),
)
"""Until this share of the steps, rows of these lengths in tokens are drawn with these weights."""

SHORT_ROW = 288
"""Rows up to this length come in batches of a quarter of the tokens: many small steps find the circuits first."""

DECAY_SHARE = 0.65
"""Share of the steps, the last ones, over which the learning rates fall linearly to zero."""


def row_lengths(recipe: Recipe, steps: int) -> list[int]:
    """Row length of every step by the curriculum, none longer than ``recipe.longest``."""
    rng = Random(f"lengths/{recipe.seed}")
    lengths = []
    for step in range(steps):
        mix = next(mix for until, mix in CURRICULUM if step < until * steps or until == 1.0)
        lengths.append(min(recipe.longest, rng.choices(list(mix), list(mix.values()))[0]))
    return lengths


def rate_factor(step: int, steps: int) -> float:
    """Learning rate at a step relative to its peak: short warm-up, constant, linear fall."""
    return min(1.0, (step + 1) / 100, (1 - step / steps) / DECAY_SHARE)


def rows_of(recipe: Recipe, length: int) -> int:
    """Rows of a batch of rows of ``length`` tokens."""
    return max(1, (recipe.tokens // 4 if length <= SHORT_ROW else recipe.tokens) // length)


class Examination:
    """Held-out questions whose answers must be predicted without a fault, which is what greedy decoding needs."""

    def __init__(self, context_tokens: int, per_task: int, encoder: WordEncoder, device: torch.device) -> None:
        self.sets: dict[str, tuple[Tensor, Tensor]] = {}
        for task in TASKS:
            rows, asked = [], []
            for sample in generate([task], context_tokens, per_task, seed=424_242):
                prompt = [BEGIN_ID, USER_ID, *encoder.encode(sample.messages[0]["content"]), END_ID, ASSISTANT_ID]
                answer = [*encoder.encode(sample.expected), END_ID]
                rows.append(prompt + answer)
                asked.append((len(prompt), len(answer)))
            width = max(len(row) for row in rows)
            tokens = torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])
            places = torch.arange(width)
            answers = torch.stack([(places >= start) & (places < start + size) for start, size in asked])
            self.sets[task] = tokens.to(device), answers.to(device)

    def exact(self, network: ProbeNetwork) -> dict[str, float]:
        """Share of questions answered exactly, by task."""
        shares = {}
        for task, (tokens, answers) in self.sets.items():
            right = network.predictions(tokens)[:, :-1] == tokens[:, 1:]
            shares[task] = float((right | ~answers[:, 1:]).all(dim=1).float().mean())
        return shares


def _seconds_per_step(
    step: TrainingStep, shapes: list[tuple[int, int]], device: torch.device
) -> dict[tuple[int, int], float]:
    """Seconds of a step by the batch's (rows, length); call it while the learning rate is zero."""
    seconds = {}
    for shape in shapes:
        tokens, weights = torch.full(shape, 300, dtype=torch.int16), torch.ones(shape, dtype=torch.uint8)
        step(tokens, weights)
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(8):
            step(tokens, weights)
        _synchronize(device)
        seconds[shape] = (time.perf_counter() - start) / 8
    return seconds


@torch.no_grad()
def _share_forms(network: ProbeNetwork) -> None:
    """Let a word with and without its leading space start from the same embedding."""
    vocabulary = build_vocabulary()
    for token, index in vocabulary.items():
        spaced = vocabulary.get(f"\u0120{token}")
        if spaced is not None and token.isalpha():
            network.embedding[index] = network.embedding[spaced]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def train(recipe: Recipe) -> None:
    """Train, examine now and then, export into ``recipe.out``."""
    device = torch.device(recipe.device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(recipe.attention == "cudnn")
    torch.backends.cuda.enable_flash_sdp(recipe.attention == "flash")
    shape = Shape(
        hidden=recipe.hidden,
        layers=recipe.layers,
        heads=recipe.heads,
        kv_heads=recipe.kv_heads,
        inner=recipe.inner,
        rope_theta=recipe.rope_theta,
    )
    network = ProbeNetwork(shape, recipe.seed, torch.bfloat16 if device.type == "cuda" else torch.float32).to(device)
    _share_forms(network)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters", flush=True)
    if recipe.compiled:
        network.compile_parts()
    shapes = sorted({(rows_of(recipe, length), length) for length in row_lengths(recipe, 2000)}, reverse=True)
    step_once = TrainingStep(network, recipe.matrix_rate, recipe.vector_rate, device, recipe.compiled, recipe.graphs)
    step_once.prepare(shapes)
    steps = recipe.steps
    if steps is None:
        taken = _seconds_per_step(step_once, shapes, device)
        mean = sum(taken[rows_of(recipe, length), length] for length in row_lengths(recipe, 2000)) / 2000
        steps = int(recipe.seconds / (1.03 * mean + 0.0003))
        print("seconds a step:", {k: round(v, 4) for k, v in taken.items()}, "steps:", steps, flush=True)
        step_once.reset()
    encoder = WordEncoder(build_vocabulary())
    contexts = [context for context in (256, 512, 1024, 2048, 4096) if context <= max(256, recipe.longest)]
    examinations = {context: Examination(context, recipe.per_task, encoder, device) for context in contexts}
    recipe.out.mkdir(parents=True, exist_ok=True)
    log = (recipe.out / "log.jsonl").open("w", encoding="utf-8")
    lengths = row_lengths(recipe, steps)
    begun = examined = time.perf_counter()
    waited = 0.0
    losses: list[Tensor] = []
    stream = batches(recipe.seed, [(rows_of(recipe, length), length) for length in lengths], recipe.workers)
    for step in range(steps):
        asked = time.perf_counter()
        batch = next(stream)
        waited += time.perf_counter() - asked
        step_once.set_rate(rate_factor(step, steps))
        losses.append(step_once(torch.from_numpy(batch.tokens), torch.from_numpy(batch.weights)))
        last = step == steps - 1
        if last or (step % 20 == 0 and time.perf_counter() - examined > recipe.examine_every):
            scores = {context: test.exact(network) for context, test in examinations.items()}
            passed = time.perf_counter() - begun
            entry = {
                "step": step + 1,
                "seconds": round(passed, 1),
                "waited": round(waited, 1),
                "loss": round(float(torch.stack(losses).mean()), 4),
                "exact": scores,
            }
            log.write(json.dumps(entry) + "\n")
            log.flush()
            print(
                f"step {step + 1}/{steps} {passed:.0f} s (data {waited:.0f} s) "
                f"loss {entry['loss']:.4f} row {lengths[step]}",
                flush=True,
            )
            for context, shares in scores.items():
                print(
                    f"  {context:5d}",
                    " ".join(f"{task} {100 * share:.0f}" for task, share in shares.items()),
                    flush=True,
                )
            losses.clear()
            export(network, recipe.out)
            examined = time.perf_counter()
    log.close()
    print(f"largest logit difference to transformers: {agreement(network, recipe.out):.2e}", flush=True)
