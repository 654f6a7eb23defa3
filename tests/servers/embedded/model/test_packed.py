"""Packed linear layers: the same products as plain ones, recorded or not; nothing is lost where they cannot be used."""

from typing import Any

import pytest
import torch

from kvload.servers.embedded.model.attention import ATTENTION_NAME, attention
from kvload.servers.embedded.model.model import default_dtype, inspect_model, packed, record
from kvload.servers.embedded.model.packed import PackedLinear, can_pack, pack
from tests.servers.embedded.tiny_models import tiny_config, tiny_module

CPU = torch.device("cpu")
needs_instructions = pytest.mark.skipif(
    not can_pack(torch.bfloat16, CPU), reason="the processor has no instructions for bfloat16"
)


def bfloat16_model(family: str) -> Any:
    pytest.importorskip("transformers").AttentionInterface.register(ATTENTION_NAME, attention)
    return tiny_module(tiny_config(family), ATTENTION_NAME).to(torch.bfloat16)


@needs_instructions
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 200])
def test_products_are_those_of_the_plain_layer(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(96, 130, bias=bias).to(torch.bfloat16)
    x = torch.randn(1, rows, 96).to(torch.bfloat16)
    with torch.inference_mode():
        exact = torch.nn.functional.linear(x.double(), plain.weight.double(), plain.bias.double() if bias else None)
        found = PackedLinear(plain)(x)
    assert found.dtype == torch.bfloat16
    # Accumulated in float32, rounded once to 8 bits of mantissa.
    assert torch.allclose(found.double(), exact, rtol=2**-8, atol=1e-3)


@needs_instructions
@pytest.mark.parametrize("family", ["llama", "qwen2", "mixtral", "gpt-neox"])
def test_models_run_and_are_recorded_with_packed_layers(family: str) -> None:
    model = inspect_model(bfloat16_model(family), family)
    assert model.packed_layers == 0
    faster = record(packed(model))
    assert faster.packed_layers > 0
    assert faster.recording is not None


@needs_instructions
def test_a_model_that_reads_its_weights_itself_is_left_as_it_was() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(8, 8).to(torch.bfloat16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.layer.weight.T

    odd = Odd()
    layer = odd.layer
    x = torch.randn(2, 8).to(torch.bfloat16)
    with torch.no_grad():
        assert pack(odd, lambda: odd(x)) == 0
    assert odd.layer is layer


def test_float32_and_gpus_are_not_packed() -> None:
    assert not can_pack(torch.float32, CPU)
    assert not can_pack(torch.bfloat16, torch.device("cuda"))


@pytest.mark.parametrize(
    ("configured", "instructions", "device", "chosen"),
    [
        ("bfloat16", True, "cpu", torch.bfloat16),
        ("float16", True, "cpu", torch.bfloat16),
        ("float32", True, "cpu", torch.float32),
        ("bfloat16", False, "cpu", torch.float32),
        ("float16", False, "cuda", torch.float16),
        ("float32", False, "cuda", torch.bfloat16),
    ],
)
def test_the_dtype_follows_the_model_and_the_processor(
    configured: str, instructions: bool, device: str, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvload.servers.embedded.model.model.has_bfloat16", lambda: instructions)
    config = tiny_config("llama", dtype=configured)
    assert default_dtype(config, torch.device(device)) is chosen
