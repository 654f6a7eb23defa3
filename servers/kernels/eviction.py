"""Choosing which tokens stay by the attention they received.

Shapes: ``H`` key-value heads, ``G`` query heads of each, ``n`` tokens.
"""

import torch
from torch.nn import functional

from kvload.servers.kernels import attention


def received(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, scaling: float) -> torch.Tensor:
    """The attention weight each key received, summed over queries and over the query heads that share it.

    Args:
        query: ``(1, H, G, t, D)``.
        key: ``(1, H, n, D)``.
        mask: added to the scores; broadcasts to ``(1, H, G, t, n)``.
        scaling: factor on the scores.

    Returns:
        ``(H, n)`` in float32.
    """
    weights = attention.scores(query.float() * scaling, key, mask, None).softmax(-1)
    return weights.sum((2, 3))[0]


def mean_over_neighbours(scores: torch.Tensor, width: int) -> torch.Tensor:
    """Scores ``(..., n)`` of consecutive positions, each replaced by the mean of ``width`` around it, zeros outside."""
    flat = scores.reshape(1, -1, scores.shape[-1])
    return functional.avg_pool1d(flat, width, stride=1, padding=width // 2).view(scores.shape)


def survivors(older: torch.Tensor, kept: int) -> torch.Tensor:
    """Which tokens have the ``kept`` highest scores; of equal ones, the earlier.

    Args:
        older: ``(H, n)`` scores of the tokens that may go.

    Returns:
        ``(H, n)`` booleans, ``kept`` of them true in each row.
    """
    order = older.argsort(dim=-1, descending=True, stable=True)[:, :kept]
    return torch.zeros(older.shape, dtype=torch.bool, device=older.device).scatter_(-1, order, value=True)


def moves(stays: torch.Tensor, dying: int, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where survivors of dying slots go: into the slots of dropped tokens among those that stay, in order.

    Args:
        stays: ``(H, n)`` booleans, as many true in each row.
        dying: first slots, which are all given up.
        kept: slots that take part; the ``kept - dying`` others hold as many tokens as stay.

    Returns:
        source and destination slots, ``(H, m)`` each with the same ``m`` for every head: heads with fewer moves repeat
        the move of the first dying slot onto itself.
    """
    slots = torch.arange(kept, device=stays.device)
    moving = stays & (slots < dying)
    holes = ~stays & (slots >= dying)
    most = int(moving.sum(-1).max())
    heads = stays.shape[0]
    source = torch.zeros((heads, most), dtype=torch.int64, device=stays.device)
    target = torch.zeros_like(source)
    for head in range(heads):
        count = int(moving[head].sum())
        source[head, :count] = slots[moving[head]]
        target[head, :count] = slots[holes[head]]
    return source, target
