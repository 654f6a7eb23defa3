"""Linear layers whose weights lie as the processor's matrix instructions read them.

Plain 16-bit products on a CPU bring the weights into that order anew in every call, which costs more than the product
itself for a step's few rows. Here it is done once, when the model is loaded.
"""

import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)

ROWS = 64
"""Rows of a typical step, which the order is chosen for."""

_CALL = """
graph(%x : Tensor, %weight : Tensor, %bias : Tensor?):
  %name : str = prim::Constant[value="none"]()
  %algorithm : str = prim::Constant[value=""]()
  %scalars : Scalar?[] = prim::ListConstruct()
  %y : Tensor = mkldnn::_linear_pointwise(%x, %weight, %bias, %name, %scalars, %algorithm)
  return (%y)
"""
"""Written in torch's intermediate form, since neither tracing nor scripting knows the type of the empty list."""


class PackedLinear(torch.nn.Module):
    """Takes the place of a ``torch.nn.Linear`` in bfloat16.

    Args:
        plain: the layer; its weight is copied.
    """

    def __init__(self, plain: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), ROWS)
        self.register_buffer("packed", packed, persistent=False)
        self.bias = plain.bias
        self.weight_bytes = plain.weight.nbytes
        self._call = _call()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x @ weight.T + bias``."""
        result: torch.Tensor = self._call(x, self.packed, self.bias)
        return result


_COMPILED: list[Callable[..., torch.Tensor]] = []


def _call() -> Callable[..., torch.Tensor]:
    if not _COMPILED:
        graph = torch._C.parse_ir(_CALL)
        _COMPILED.append(torch._C._create_function_from_graph("packed_linear", graph))
    return _COMPILED[0]


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether layers of this dtype gain by it here."""
    if device.type != "cpu" or dtype is not torch.bfloat16 or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(module: torch.nn.Module, check: Callable[[], torch.Tensor]) -> int:
    """Put packed layers in the place of a model's plain ones.

    Args:
        module: the model. Where it does not run with packed layers, it is left as it was.
        check: runs the model on some example.

    Returns:
        how many layers were packed.
    """
    plain = {name: layer for name, layer in module.named_modules() if type(layer) is torch.nn.Linear}
    expected = check()
    try:
        for name, layer in plain.items():
            _put(module, name, PackedLinear(layer))
        found = check()
        close = torch.allclose(found, expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))
    except Exception as error:
        # A model may read a layer's weight itself, which a packed one has not.
        logger.warning("the weights cannot be packed (%s); the model runs with plain ones, more slowly", error)
        close = False
    if not close:
        for name, layer in plain.items():
            _put(module, name, layer)
        return 0
    return len(plain)


def _put(module: torch.nn.Module, name: str, layer: torch.nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, layer)
