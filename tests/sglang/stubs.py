"""SGLang's own modules on a machine without a GPU: packages it imports and does not find are stood in for.

Its scheduler, its pools and its attention backend are plain Python over torch; what they import besides are kernels and
model code that no test here runs. A stand-in is good for an import, as a base class and as a decorator, nothing else.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

MISSING = (
    "torchvision", "torchaudio", "sgl_kernel", "flashinfer", "deep_gemm", "tilelang", "cutlass", "cuda", "torchao",
    "PIL", "IPython", "pybase64", "soundfile", "sentencepiece", "xgrammar", "llguidance", "outlines", "openai_harmony",
    "compressed_tensors", "partial_json_parser", "interegular", "orjson", "zmq", "setproctitle", "dill", "einops",
    "pydantic", "fastapi", "uvicorn", "starlette", "uvloop", "watchfiles", "prometheus_client", "openai", "timm",
    "gguf", "modelscope", "kernels", "helion", "tiktoken", "blobfile", "distro", "easydict", "numba", "xxhash",
    "zstandard",
    "decord", "av", "quack", "anthropic", "mistral_common", "datasets", "py_spy", "tvm_ffi", "aiohttp", "requests",
    "torch_memory_saver", "smg_grpc_proto", "triton_kernels", "ray", "humming", "multipart", "nvidia_cutlass_dsl",
    "pynvml", "cloudpickle", "psutil", "tqdm", "build", "tokenspeed_mla",
)  # fmt: skip
"""Names that are stood in for where they are not installed."""


class Stand(type):
    """The class of everything a stand-in module holds."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Stand(name, (), {})

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        # As a decorator it gives back what it decorates; as a decorator's factory, such a decorator.
        if len(arguments) == 1 and isinstance(arguments[0], types.FunctionType | type) and not options:
            return arguments[0]
        if getattr(cls, "stands_alone", False):
            return type.__call__(cls)
        return super().__call__(*arguments, **options)

    def __getitem__(cls, item: Any) -> Any:
        return cls

    def __or__(cls, other: Any) -> Any:
        return other

    def __ror__(cls, other: Any) -> Any:
        return other

    def __iter__(cls) -> Any:
        return iter(())


def _call(_: Any, *arguments: Any, **__: Any) -> Any:
    return arguments[0] if arguments else None


def _schema(_: Any, *__: Any) -> dict[str, str]:
    return {"type": "any"}


class Module(types.ModuleType):
    """A module in which every name is found."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        body = {
            "__call__": _call,
            "__get_pydantic_core_schema__": classmethod(_schema),
            "__init_subclass__": classmethod(_call),
            "stands_alone": True,
        }
        found = "0.0.0" if name == "version" else Stand(name, (), body)
        setattr(self, name, found)
        return found


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for what nobody else finds."""

    def find_spec(self, fullname: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        """Last in line."""
        if fullname.partition(".")[0] not in MISSING:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """An empty package."""
        module = Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def install() -> None:
    """Once per process, before SGLang is imported."""
    import contextlib

    from transformers.utils import import_utils

    # transformers remembers what is installed; it must not take a stand-in for the real one.
    for name in dir(import_utils):
        if name.startswith("is_") and name.endswith("_available"):
            with contextlib.suppress(Exception):
                getattr(import_utils, name)()
    from transformers import AutoConfig

    # A newer transformers brings some configurations itself.
    original = AutoConfig.register
    AutoConfig.register = staticmethod(lambda *names, **options: original(*names, **{**options, "exist_ok": True}))
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
