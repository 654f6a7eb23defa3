"""The embedded engine's command line."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from kvload.errors import UsageError
from kvload.units import parse_bytes


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """All options with their defaults; None means: chosen once the model and the machine are known."""
    parser = argparse.ArgumentParser(
        prog="python -m kvload.servers.embedded",
        description="kvload's embedded engine: an OpenAI-compatible server over a compressed KV cache.",
    )
    parser.add_argument(
        "--model", required=True, help="folder of a Hugging Face causal language model, or its hub name"
    )
    parser.add_argument("--served-model-name", help="name in the API (default: the folder's name)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--method", default="none", help="KV-cache compression, NAME[:option=value,...]")
    parser.add_argument("--kv-memory", type=_size, help="size of the KV cache (default: 512MiB; most of a GPU)")
    parser.add_argument("--load-format", choices=("auto", "dummy"), default="auto", help="dummy: random weights")
    parser.add_argument("--max-model-len", type=_positive, help="longest prompt and answer (default: the model's)")
    parser.add_argument("--max-num-seqs", type=_positive, default=128, help="requests at once (default: %(default)s)")
    parser.add_argument("--chunk-tokens", type=_positive, help="tokens of one step (default: 512; 2048 on a GPU)")
    parser.add_argument("--threads", type=_positive, help="torch's threads on the CPU (default: by the machine)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument(
        "--kernels", default="auto", help="what stores and attends: torch, or the name of another set (default: auto)"
    )
    parser.add_argument(
        "--no-graphs", action="store_true", help="run every step as it is, where decoding steps could be CUDA graphs"
    )
    parser.add_argument("--step-log", type=Path, help="file to note every step in: what it computed, and its seconds")
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of random weights (default: %(default)s)")
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse, and check what needs no model.

    Raises:
        SystemExit: as argparse does, with status 2.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.chunk_tokens is not None and options.chunk_tokens <= options.max_num_seqs:
        parser.error(f"--chunk-tokens {options.chunk_tokens} must be larger than --max-num-seqs {options.max_num_seqs}")
    if not 0 <= options.port < 65536:
        parser.error(f"--port {options.port} is not a port")
    return options
