"""Writes a trained probe network as a Hugging Face model folder and checks that transformers computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from kvload.servers.probe.tasks.generator import generate
from kvload.servers.probe.training.network import ProbeNetwork
from kvload.servers.probe.training.outliers import add_key_outliers
from kvload.servers.probe.training.tokenizer import BEGIN_ID, END_ID, PAD_ID, build_vocabulary, write_tokenizer


def export(network: ProbeNetwork, folder: Path) -> None:
    """Write config, generation config, bfloat16 safetensors weights and tokenizer into ``folder`` (made if missing).

    The keys get outlier channels on the way, which changes nothing that the model computes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = network.hub_weights()
    add_key_outliers(weights, network.shape)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = network.shape.hub_config(END_ID, BEGIN_ID, PAD_ID)
    generation = {"bos_token_id": BEGIN_ID, "eos_token_id": END_ID, "pad_token_id": PAD_ID, "do_sample": False}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(folder, build_vocabulary())


def agreement(network: ProbeNetwork, folder: Path) -> float:
    """Largest difference between the last hidden states' logits here and in transformers, both in float32 on the CPU.

    The weights are compared as exported (rounded to bfloat16), on one prompt of each of three tasks.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rounded = ProbeNetwork(network.shape, seed=0, dtype=torch.float32)
    with torch.no_grad():
        for copy, original in zip(rounded.parameters(), network.parameters(), strict=True):
            copy.copy_(original.detach().to("cpu", torch.bfloat16).float())
    worst = 0.0
    for sample in generate(("recall", "recite", "sum"), 512, 3, seed=9):
        ids = tokenizer.apply_chat_template(
            list(sample.messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        with torch.no_grad():
            theirs = model(ids).logits[0]
            hidden = rounded.hidden(ids, rounded.tables(ids.size(0), ids.size(1), ids.device), parts=False)
            wide = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + rounded.shape.norm_eps)
            mine = (wide * rounded.final_gain) @ rounded.embedding.T
        worst = max(worst, float((mine - theirs).abs().max()))
    return worst
