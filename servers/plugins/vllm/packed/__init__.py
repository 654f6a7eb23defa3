"""Packed pages inside vLLM: keys and values in 8, 4 or 2 bits, read as they are by kernels of kvload's own.

vLLM is told of pages of bytes: a specification of plain full attention whose element is a byte and whose head is as
long as a packed token. Its scheduler, its pool, its prefix cache and its block tables stay as they are.

``spec`` says how long a page is; ``gpu`` is the backend on the kernels of :mod:`kvload.servers.kernels.triton`, ``cpu``
the one on their torch reference, for tests of everything but kernels and graphs; ``rings`` keeps the newest tokens of
methods with a window (KIVI) in full precision, one ring a request slot; ``wraps`` reaches what vLLM has no hook for.

A prompt's tokens see those of the same step exactly and earlier ones as they are stored; a generated token sees
everything as stored, itself included.
"""
