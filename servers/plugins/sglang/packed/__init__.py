"""Packed pages inside SGLang: keys and values in 8, 4 or 2 bits, read as they are by kernels of kvload's own.

SGLang's pool becomes one of pages of bytes (``pool``), its reckoning of a token's bytes follows, and its page size is
the kernels' (``--page-size 64``): its allocator, its request table and its prefix cache stay as they are, but for
methods with a window (KIVI), which keep the newest tokens in full precision in a ring for each request slot and share
no prefixes. ``backend`` is SGLang's FlashAttention backend with its attention replaced, ``hooked`` puts all in place.

A prompt's tokens see those of the same step exactly and earlier ones as they are stored; a generated token sees
everything as stored, itself included.
"""
