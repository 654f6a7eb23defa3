"""How often 80 % intervals of predictions hold what came, where the truth is known: simulated servers that drift.

Every run is served by a server whose decoding, prompts and launches take longer or shorter by a factor of their own,
and whose launches scatter. Models are fitted from three runs and held against two others, at other rates.

    python -m kvload.scripts.bench_intervals --fits 6
"""

import argparse
import tempfile
from pathlib import Path

import msgspec
import numpy as np

from kvload.experiment.prediction.cells import Cell
from kvload.experiment.prediction.check import check_runs
from kvload.experiment.prediction.fitting import fit_models
from kvload.experiment.prediction.run_folder import write_run
from kvload.servers.simulator.cluster import Load, serve
from kvload.step_model import COEFFICIENTS, PARTS, StepModel

SERVER = StepModel(
    method="none",
    engine="vllm",
    coefficients=(5e-3, 1e-3, 1e-5, 4e-8, 1.8e-5, 1e-9, 28e-3),
    draws=[],
    hull={},
    steps=1,
    error_p50=0.0,
    error_p90=0.0,
    overhead_s=0.005,
    pool_tokens=131_000,
    chunk_tokens=8192,
    ahead_steps=1,
    launch_jitter=0.25,
)
"""About what vLLM is with an 8B model on an H200."""

SECONDS = 14
FITTED, HELD = (6.0, 8.0, 10.0), (5.0, 9.0)
"""Rates, requests a second."""


def make_run(folder: Path, rate: float, drift: list[float], rng: np.random.Generator) -> Path:
    """A run of a server that drifted: by ``drift``, standard deviations of the logarithm of each part."""
    factors = np.exp(rng.normal(0.0, drift))
    of = {name: factor for names, factor in zip(PARTS, factors.tolist(), strict=True) for name in names}
    costs = tuple(cost * of[name] for name, cost in zip(COEFFICIENTS, SERVER.coefficients, strict=True))
    server = msgspec.structs.replace(SERVER, coefficients=costs)
    count = int(rate * SECONDS)
    load = Load(
        np.cumsum(rng.exponential(1 / rate, count)), rng.integers(50, 3000, count), rng.integers(20, 250, count)
    )
    served = serve(load, server, seed=int(rng.integers(2**31)))
    write_run(folder, served, load, server, slo={}, seed=0)
    return folder


def main() -> None:
    """Print how many cells of each figure lie in their interval."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, default=6)
    parser.add_argument("--drift", type=float, nargs=3, default=[0.01, 0.05, 0.15], help="decoding, prompts, launches")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    cells: list[Cell] = []
    for _ in range(options.fits):
        with tempfile.TemporaryDirectory() as folder:
            fitted = [make_run(Path(folder) / f"fit-{rate}", rate, options.drift, rng) for rate in FITTED]
            models = fit_models(fitted)
            held = [make_run(Path(folder) / f"held-{rate}", rate, options.drift, rng) for rate in HELD]
            cells += check_runs(held, models, {}).cells
    for figure in dict.fromkeys(cell.figure for cell in cells):
        of = [cell for cell in cells if cell.figure == figure]
        print(f"{figure:10} {sum(cell.held for cell in of)} of {len(of)}")
    print(f"{'all':10} {sum(cell.held for cell in cells)} of {len(cells)}")


if __name__ == "__main__":
    main()
