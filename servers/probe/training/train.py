"""Trains the probe model on one GPU (or, tiny, on a CPU): ``python -m kvload.servers.probe.training.train --out DIR``.

Light to import, because every process that makes data imports it again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a training run.

    ``steps`` optimizer steps, or as many as about fit ``seconds`` once the steps have been timed; ``tokens`` per step,
    a multiple of 4608; ``longest`` row of the curriculum; ``matrix_rate`` and ``vector_rate`` peak learning rates of
    Muon (the layers' matrices) and AdamW (embedding and norms); ``per_task`` held-out questions per task and context;
    ``hidden`` to ``rope_theta`` the network's shape.
    """

    out: Path
    steps: int | None = None
    seconds: float = 600.0
    seed: int = 1
    workers: int = 14
    tokens: int = 73_728
    longest: int = 4608
    matrix_rate: float = 0.008
    vector_rate: float = 0.003
    hidden: int = 256
    layers: int = 8
    heads: int = 8
    kv_heads: int = 2
    inner: int = 320
    rope_theta: float = 100_000.0
    examine_every: float = 45.0
    per_task: int = 48
    device: str = "cuda"
    attention: str = "cudnn"
    compiled: bool = True
    graphs: bool = True


def parse(argv: list[str] | None = None) -> Recipe:
    """The recipe of a command line."""
    default = Recipe(Path())
    parser = argparse.ArgumentParser(description="Train the probe model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and log.jsonl")
    parser.add_argument("--steps", type=int, help="optimizer steps; default: as many as fit --seconds")
    for name, kind in (
        ("seconds", float),
        ("seed", int),
        ("workers", int),
        ("tokens", int),
        ("longest", int),
        ("matrix_rate", float),
        ("vector_rate", float),
        ("hidden", int),
        ("layers", int),
        ("heads", int),
        ("kv_heads", int),
        ("inner", int),
        ("rope_theta", float),
        ("examine_every", float),
        ("per_task", int),
        ("device", str),
        ("attention", str),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=getattr(default, name))
    parser.add_argument("--no-compile", dest="compiled", action="store_false")
    parser.add_argument("--no-graphs", dest="graphs", action="store_false", help="no CUDA graphs")
    return Recipe(**vars(parser.parse_args(argv)))


def main() -> None:
    """Train by the command line."""
    from kvload.servers.probe.training.trainer import train

    train(parse())


if __name__ == "__main__":
    main()
