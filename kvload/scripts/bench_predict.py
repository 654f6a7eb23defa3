"""What the simulator costs: requests served in virtual time, and a day's plan. ``make bench-predict`` runs it."""

import argparse
import json
import resource
import time
from dataclasses import dataclass

import numpy as np

from kvload.experiment.prediction.plan import Wanted, plan_servers
from kvload.servers.simulator.cluster import Load, serve
from kvload.step_model import StepModel

PROMPT_MEDIAN, PROMPT_SPREAD, ANSWER_MEDIAN, ANSWER_SPREAD = 1000.0, 0.9, 150.0, 0.8
"""Log-normal lengths about as long as those of the Azure conversation trace of 2023."""

LONGEST = 8000


@dataclass(frozen=True)
class Timing:
    """One measurement: processor seconds of one core, and the peak of the process's memory."""

    what: str
    requests: int
    cpu_s: float
    events: int
    steps: int
    peak_mib: float


def server() -> StepModel:
    """An 8B model's step times on an H100 with 8 GiB of cache, as docs/results/prediction.md has them."""
    return StepModel(
        method="none",
        coefficients=(6.4e-3, 1e-3, 9e-6, 4.5e-8, 1.75e-5, 2.5e-9, 30e-3),
        draws=[],
        hull={},
        steps=1,
        error_p50=0.0,
        error_p90=0.0,
        ahead_steps=1,
        launch_jitter=0.25,
        pool_tokens=65_536,
        chunk_tokens=8192,
    )


def made_load(count: int, rate: float, seed: int = 0, daily: bool = False) -> Load:
    """A load of log-normal lengths.

    Args:
        rate: requests a second; the mean over a day where ``daily``.
        daily: the rate follows the hour, from a quarter of its mean at night to 1.75 times at noon.
    """
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate, count))
    if daily:
        # Arrivals even in the curve's integral: t + 0.75 sin-wave, inverted on a grid.
        grid = np.linspace(0, 86_400, 10_001)
        turned = grid - 0.75 * 86_400 / (2 * np.pi) * np.sin(2 * np.pi * grid / 86_400)
        days, rest = np.divmod(arrival, 86_400)
        arrival = days * 86_400 + np.interp(rest, turned, grid)
    prompts = np.clip(rng.lognormal(np.log(PROMPT_MEDIAN), PROMPT_SPREAD, count), 8, LONGEST)
    answers = np.clip(rng.lognormal(np.log(ANSWER_MEDIAN), ANSWER_SPREAD, count), 2, 2000)
    return Load(arrival, prompts.astype(np.int64), answers.astype(np.int64))


def measure(what: str, load: Load, replicas: int) -> Timing:
    """Serve a load once."""
    began = time.process_time()
    served = serve(load, server(), replicas=replicas, policy="least-loaded")
    cpu_s = time.process_time() - began
    logs = [replica.log for replica in served.replicas]
    steps = sum(stretch.steps for log in logs for stretch in log)
    return Timing(what, len(load), cpu_s, sum(map(len, logs)), steps, _peak_mib())


def measure_plan(load: Load) -> Timing:
    """Plan for a load: as many simulations as the search takes."""
    began = time.process_time()
    plan = plan_servers(load, server(), Wanted({"ttft": 1.0, "tpot": 0.05}, 0.99, 256, "least-loaded"))
    return Timing(f"a day's plan: {plan.servers} servers", len(load), time.process_time() - began, 0, 0, _peak_mib())


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--million", action="store_true", help="also a million requests over eight servers")
    parser.add_argument("--day", action="store_true", help="also plan a day of six requests a second, by the hour")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    timings = [measure(f"{rate:g} a second, one server", made_load(10_000, rate), 1) for rate in (4.0, 8.0, 12.0, 30.0)]
    if given.million:
        timings.append(measure("80 a second, eight servers", made_load(1_000_000, 80.0), 8))
    if given.day:
        timings.append(measure_plan(made_load(6 * 86_400, 6.0, daily=True)))
    if given.json:
        print(json.dumps([vars(timing) for timing in timings], indent=2))
        return
    print(f"{'load':32}{'requests':>12}{'cpu s':>9}{'events':>12}{'steps':>13}{'peak MiB':>10}")
    for each in timings:
        print(
            f"{each.what:32}{each.requests:>12,}{each.cpu_s:>9.2f}{each.events:>12,}{each.steps:>13,}"
            f"{each.peak_mib:>10.0f}"
        )


if __name__ == "__main__":
    main()
