"""Rounding to few bits and packing the result into bytes."""

import numpy as np
import torch

FLOAT16_LARGEST = 65504.0


def affine(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round to the ``2**bits`` levels between minimum and maximum of the last dimension.

    ``low = min``, ``step = (max - min) / (2**bits - 1)``, both float16; ``code = round((x - low) / step)``. A constant
    vector gets step 1 and codes 0, which restores it.

    Args:
        x: ``(..., group)``.

    Returns:
        codes ``(..., group)`` uint8, steps and lows ``(...)`` float16.
    """
    wide = x.float()
    low = wide.amin(-1).clamp_(-FLOAT16_LARGEST, FLOAT16_LARGEST)
    step = ((wide.amax(-1) - low) / (2**bits - 1)).clamp_(max=FLOAT16_LARGEST).half()
    step = torch.where(step == 0, torch.ones_like(step), step)
    low = low.half()
    codes = (wide - low.float()[..., None]).div_(step.float()[..., None])
    return codes.round_().clamp_(0, 2**bits - 1).to(torch.uint8), step, low


def pack(codes: torch.Tensor, bits: int, dim: int = -1) -> torch.Tensor:
    """Put ``8 / bits`` codes into a byte: byte ``j`` of ``m`` holds codes ``j, j + m, j + 2 m ...``, lowest bits first.

    Neighbouring bytes thus unpack to neighbouring numbers, with no shuffling inside a register.

    Args:
        codes: ``(..., n, ...)`` uint8, ``n`` a multiple of ``8 / bits``.
        dim: the dimension that is packed.

    Returns:
        ``(..., n * bits / 8, ...)`` uint8.
    """
    parts = codes.chunk(8 // bits, dim)
    packed = parts[0].clone()
    for index, part in enumerate(parts[1:], 1):
        packed |= part << (index * bits)
    return packed


def unpack(packed: torch.Tensor, bits: int, dim: int = -1) -> torch.Tensor:
    """The reverse of :func:`pack`, as float32."""
    count = 8 // bits
    shape = list(packed.shape)
    shape[dim] *= count
    out = torch.empty(shape, dtype=torch.float32, device=packed.device)
    parts = out.chunk(count, dim)
    for index in range(count):
        part = packed if index == 0 else packed >> (index * bits)
        if index < count - 1:
            part = part & (2**bits - 1)
        parts[index].copy_(part)
    return out


def from_e4m3(data: torch.Tensor) -> torch.Tensor:
    """8-bit floating point numbers as float32."""
    if data.is_cuda:
        return data.float()
    # Processors lack the conversion. Moved into place, the bits are a float16 of 2**-8 times the value, because float16
    # has the exponent bias 15 and e4m3 has 7; subnormal numbers come out right as well.
    moved = data.view(torch.int8).to(torch.int16)
    # The shifted sign stands in two bits, of which the lower one belongs to the exponent.
    moved.bitwise_left_shift_(7).bitwise_and_(~0x4000)
    return moved.view(torch.float16).float().mul_(256.0)


def random_hadamard(size: int, seed: int) -> torch.Tensor:
    """An orthogonal matrix that spreads a large channel over many: random signs, then a Hadamard transform.

    Where ``size`` is no power of two the transform works on blocks of the largest power of two that divides it.

    Returns:
        ``(size, size)`` float32; rows are rotated by ``x @ matrix``.
    """
    block = size & -size
    transform = torch.ones(1, 1)
    while transform.shape[0] < block:
        transform = torch.cat([torch.cat([transform, transform], 1), torch.cat([transform, -transform], 1)])
    whole: torch.Tensor = torch.block_diag(*[transform] * (size // block)) / block**0.5  # type: ignore[no-untyped-call]
    signs = np.random.default_rng(seed).integers(0, 2, size) * 2 - 1
    return torch.from_numpy(signs).float()[:, None] * whole
