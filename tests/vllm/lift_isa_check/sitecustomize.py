"""Lifts one check of vLLM's CPU backend, so that its corrupting KV-cache dtypes can be met on any x86 processor.

On processors without AVX-512 or AMX vLLM 0.32 refuses every quantised KV cache. On those with it, it accepts all of its
KV-cache dtypes and corrupts most: storage of one byte an element, a kernel that writes two. Put on PYTHONPATH, this
module brings the second behaviour to the first kind of machine, for testing kvload's verification. (Real fp8, which
such processors lack kernels for, fails at the first request then.)
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

BACKEND = "vllm.v1.attention.backends.cpu_attn"


class LiftCheck(importlib.abc.MetaPathFinder):
    """Wraps the loading of vLLM's CPU attention backend."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != BACKEND:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_lift(module: Any) -> None:
            load(module)
            choose = module._get_attn_isa
            # The last argument, the KV-cache dtype, is what the check looks at.
            module._get_attn_isa = lambda dtype, block_size, head_size=None, kv_cache_dtype=None: choose(  # noqa: ARG005
                dtype, block_size, head_size, None
            )

        spec.loader.exec_module = load_and_lift  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, LiftCheck())
