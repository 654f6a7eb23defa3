"""The probe: a small language model trained to answer from its context, its tasks and its tokenizer.

``kvload.servers.probe.tasks.generator`` makes scored questions by seed, ``MODEL_DIR`` is the trained model that any
server of Llama models can load.
"""

from __future__ import annotations

from pathlib import Path

MODEL_DIR = Path(__file__).resolve().parent / "model"
"""Folder of the trained model: config, safetensors weights, tokenizer and chat template."""
