"""Kernels in Triton, for engines on a GPU; Triton's interpreter runs them on a CPU for tests.

They need ``triton`` and nothing of kvload but :mod:`kvload.servers.kernels`: these modules are also loaded inside
another engine's process. ``attend``, ``decode``, ``store``, ``rings`` and ``dequantise`` serve packed pages, through
``launch``; their layouts are those of :mod:`kvload.servers.kernels.formats`, and :mod:`kvload.servers.kernels.packed`
is the reference in torch. ``eviction`` serves methods that drop tokens.
"""
