"""Starts a real vLLM with each of its KV-cache dtypes and prints, as a Markdown table, how kvload judges it.

    python tests/vllm/judge_dtypes.py --python "$(tests/vllm/install.sh --where)" MODEL [--lift-isa-check] [DTYPE ...]

``--lift-isa-check`` takes away vLLM's refusal of quantised caches on processors without AVX-512 (see lift_isa_check/).
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from kvload.errors import KvloadError
from kvload.servers import launcher
from kvload.servers.engines.base import LaunchRequest, adapter
from kvload.servers.host.machine import look
from kvload.servers.verification.verify import VerificationFailedError

HEADINGS = ("dtype", "verdict", "pool / claimed", "error / context's effect", "nats a token", "why")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("dtypes", nargs="*")
    parser.add_argument("--python", required=True)
    parser.add_argument("--lift-isa-check", action="store_true")
    options = parser.parse_args()
    build = adapter("vllm").find(options.python, os.environ, look())
    assert build is not None
    assert build.dtypes is not None
    dtypes = options.dtypes or sorted(build.dtypes - {"auto"})
    env = {"PYTHONPATH": str(Path(__file__).parent / "lift_isa_check")} if options.lift_isa_check else {}
    print(f"vLLM {build.version}, {look().cpu_name}, {options.model}")  # noqa: T201
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory() as state:
        os.environ["KVLOAD_STATE_DIR"] = state
        for dtype in dtypes:
            request = LaunchRequest(
                model=options.model,
                engine="vllm",
                method=f"raw:{dtype}",
                python=options.python,
                kv_memory=64 * 2**20,
                max_model_len=1024,
                env=env,
                verify=True,
            )
            print(f"| {' | '.join((dtype, *judge(request)))} |", flush=True)  # noqa: T201


def judge(request: LaunchRequest) -> tuple[str, str, str, str, str]:
    """Verdict, pool, error, log-likelihood and reason."""
    try:
        entry = launcher.launch(request, lambda _: None)
    except VerificationFailedError as error:
        return ("refused by kvload", *figures(error.result), "; ".join(error.result["problems"]))
    except launcher.StartFailedError as error:
        return ("did not start", "", "", "", error.cause.message)
    except KvloadError as error:
        return ("refused by kvload", "", "", "", error.message)
    launcher.stop(entry)
    return ("accepted", *figures(entry.info.verified or {}), "")


def figures(result: dict[str, Any]) -> tuple[str, str, str]:
    pool, soundness = result.get("pool", {}), result.get("soundness", {})
    return (
        f"{pool.get('ratio', '?')} / {pool.get('claimed_ratio', '?')}",
        f"{soundness['lost']:.3f}" if "lost" in soundness else "",
        f"{soundness['nll']:.3f} (baseline {soundness['baseline_nll']:.3f})" if "nll" in soundness else "",
    )


if __name__ == "__main__":
    main()
