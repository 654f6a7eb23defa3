"""A report's figures against a small computation in plain Python over the files."""

import json
import math
import statistics
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from kvload.analysis.report import json_report
from kvload.analysis.run.summary import summarise
from tests.analysis.synthetic import SLO, failure, mixed, scrapes, write


def percentile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def by_hand(path: Path) -> dict[str, object]:
    records, gaps = [], []
    for shard in sorted((path / "records").glob("*.jsonl")):
        raw = shard.with_suffix(".chunks").read_bytes()
        chunks = [struct.unpack_from("<IH", raw, place) for place in range(0, len(raw), 6)]
        for line in shard.read_text().splitlines():
            record = json.loads(line)
            records.append(record)
            if record["status"] == "ok":
                mine = chunks[record.get("chunk_offset", 0) :][: record.get("chunk_count", 0)]
                gaps += [(b[0] - a[0]) / 1e3 for a, b in pairwise(mine)]
    ok = [r for r in records if r["status"] == "ok"]
    sent = [r for r in records if r["status"] != "unsent"]
    ttft = [(r["t_first_s"] - r["t_send_s"]) * 1e3 for r in ok]
    e2e = [(r["t_last_s"] - r["t_send_s"]) * 1e3 for r in ok]
    tpot = [
        (r["t_last_s"] - r["t_first_s"]) / (r["output_tokens"] - r["first_chunk_tokens"]) * 1e3
        for r in ok
        if r["output_tokens"] > r["first_chunk_tokens"]
    ]
    good = 0
    for r in ok:
        good += (
            r["t_first_s"] - r["t_send_s"] <= SLO["ttft"]
            and r["t_last_s"] - r["t_send_s"] <= SLO["e2e"]
            and (
                r["output_tokens"] == r["first_chunk_tokens"]
                or (r["t_last_s"] - r["t_first_s"]) / (r["output_tokens"] - r["first_chunk_tokens"]) <= SLO["tpot"]
            )
        )
    duration = max(r["t_end_s"] for r in sent)
    scheduled = [r["t_sched_s"] for r in sent]
    window = (max(scheduled) - min(scheduled)) * len(sent) / (len(sent) - 1)
    figures: dict[str, object] = {
        "sent": len(sent),
        "completed": len(ok),
        "failed": len(sent) - len(ok),
        "total_output_tokens": sum(r["output_tokens"] for r in ok),
        "total_input_tokens": sum(r["prompt_tokens"] for r in ok),
        "duration": duration,
        "request_throughput": len(ok) / duration,
        "output_throughput": sum(r["output_tokens"] for r in ok) / duration,
        "request_goodput": good / window,
        "slo_attainment": good / len(sent),
    }
    for name, values in {"ttft": ttft, "tpot": tpot, "itl": gaps, "e2el": e2e}.items():
        figures[f"mean_{name}_ms"] = statistics.fmean(values)
        figures[f"std_{name}_ms"] = statistics.pstdev(values)
        figures[f"median_{name}_ms"] = statistics.median(values)
        for percent in (90, 95, 99):
            figures[f"p{percent}_{name}_ms"] = percentile(values, percent / 100)
        figures[f"max_{name}_ms"] = max(values)
    return figures


@pytest.mark.parametrize("seed", [1, 2])
def test_figures_can_be_recomputed_by_hand(tmp_path: Path, seed: int) -> None:
    run = mixed(tmp_path / "run", seed=seed)
    found = json_report.as_dict(summarise(run))
    for name, expected in by_hand(run.path).items():
        assert found[name] == pytest.approx(expected, rel=1e-9), name


def test_every_planned_request_is_accounted_for(tmp_path: Path) -> None:
    run = mixed(tmp_path / "run", planned=203)
    counts = summarise(run).counts
    assert counts.planned == counts.sent + counts.unsent + counts.lost == 203
    assert counts.lost == 3
    assert counts.sent == sum(n for status, n in counts.by_status.items() if status != "unsent")
    assert ("failed", "reset", 2) in counts.causes
    assert sum(n for _, _, n in counts.causes) == 200 - counts.completed


def test_the_same_folder_gives_the_same_report(tmp_path: Path) -> None:
    run = mixed(tmp_path / "run")
    assert summarise(run) == summarise(run)


def test_server_counters_are_held_against_the_clients(tmp_path: Path) -> None:
    run = mixed(tmp_path / "run", count=30)
    client = sum(record.output_tokens or 0 for record, _ in run.records())
    for sample in scrapes(
        [
            (0.0, {"generation_tokens": 500.0, "preemptions": 2.0, "cache_usage": 0.0, "waiting": 0.0}),
            (1.0, {"generation_tokens": 500.0 + client / 2, "preemptions": 5.0, "cache_usage": 0.5, "waiting": 4.0}),
            (2.0, {"generation_tokens": 500.0 + client, "preemptions": 5.0, "cache_usage": 0.25, "waiting": 0.0}),
        ]
    ):
        run.append_scrape(sample)
    server = summarise(run).server
    assert server.agreement[0].equal is True
    assert server.agreement[0].server == client
    assert server.agreement[1].equal is None
    assert server.preemptions == 3
    assert server.cache_usage is not None
    assert server.cache_usage.max == 0.5
    assert server.prefix_hit_rate is None


def test_a_run_without_answers_has_no_figures_and_no_zeros(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    run = write(tmp_path / "run", [failure(rng, index, "failed", "connect") for index in range(5)])
    found = json_report.as_dict(summarise(run))
    assert found["sent"] == 5
    assert found["slo_attainment"] == 0.0
    for name in ("mean_ttft_ms", "p99_tpot_ms", "median_itl_ms", "max_e2el_ms"):
        assert found[name] is None
