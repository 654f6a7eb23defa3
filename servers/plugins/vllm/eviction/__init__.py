"""Token eviction inside vLLM: blocks really go back to its pool, and its attention kernels stay its own.

The idea is one pure function. Let a block hold ``block`` tokens, ``P`` be the length of a request's prompt and ``n``
the number of its tokens that are computed. A policy says how many *leading* blocks of the request are gone then:

    first_kept(n, P)

The scheduler evaluates it and frees those blocks; the worker evaluates it and attends to the others only, through a
block table that begins at the first kept block and lengths shortened to match. No message travels between the two, so
asynchronous scheduling, preemption and chunked prefill need no case of their own.

Policies that choose by attention (``snapkv``, ``h2o``) *compact* when ``first_kept`` grows: in every layer and KV head,
the survivors among the tokens of the dying blocks move into the slots of the tokens that are dropped from the blocks
which stay. How many survive is arithmetic, the same for all layers, heads and ranks; which ones, each head decides.
Scores live in padding behind each page, so that vLLM counts their bytes in its pool.

``policy`` and its files say what a method is; ``manager`` frees; ``steps`` is the arithmetic of one step, shared by the
two attention backends ``gpu`` (FlashAttention and the kernels of :mod:`kvload.servers.kernels.triton.eviction`) and
``cpu`` (torch, for tests of everything but kernels and graphs); ``wraps`` reaches what vLLM offers no hook for.
"""
