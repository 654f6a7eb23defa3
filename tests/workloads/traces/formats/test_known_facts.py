"""Real traces against figures published for them; the files are not part of the project."""

from pathlib import Path

import numpy as np
import pytest

from kvload.workloads.schedule.build import block_reuse
from kvload.workloads.traces.formats import read_trace

TRACES = Path(__file__).parents[5] / "shared" / "traces"

pytestmark = pytest.mark.skipif(not TRACES.is_dir(), reason="no real traces beside the checkout")


def test_mooncake_conversation() -> None:
    requests = list(read_trace(TRACES / "mooncake_conversation.jsonl"))
    arrivals = np.array([request.arrival for request in requests], dtype=float)
    inputs = np.array([request.input_length for request in requests])
    outputs = np.array([request.output_length for request in requests])
    gaps = np.diff(arrivals)
    assert len(requests) == 12_031
    assert round(arrivals[-1]) == 3537
    assert round(len(requests) / arrivals[-1], 2) == 3.40
    assert round(gaps.std() / gaps.mean(), 2) == 3.03
    assert (round(inputs.mean()), np.median(inputs), inputs.max()) == (12_035, 6909, 126_195)
    assert (round(outputs.mean()), outputs.max()) == (343, 2000)
    reuse = block_reuse(requests)
    assert reuse is not None
    assert round(100 * reuse, 1) == 36.6
    assert len(np.unique(arrivals)) == 1180


def test_azure_2023_conversation_is_vidurs() -> None:
    azure = list(read_trace(TRACES / "azure_2023_conv.csv"))
    arrivals = np.array([request.arrival for request in azure], dtype=float)
    gaps = np.diff(arrivals)
    assert len(azure) == 19_366
    assert round(arrivals[-1]) == 3502
    assert round(len(azure) / arrivals[-1], 2) == 5.53
    assert round(gaps.std() / gaps.mean(), 2) == 1.09
    assert round(np.mean([request.input_length or 0 for request in azure])) == 1155
    assert round(np.mean([request.output_length or 0 for request in azure])) == 211
    assert azure == list(read_trace(TRACES / "vidur_splitwise_conv.csv"))
