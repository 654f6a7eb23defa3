"""Token eviction inside SGLang: slots really go back to its allocator, and its attention kernels stay its own.

The policies are those of :mod:`kvload.servers.plugins.vllm.eviction`: a pure function of a request's computed tokens
and its prompt's length says how many of its *leading* slots are gone. SGLang's pool is token-granular (``--page-size
1``), so a block of the policy is one token; ``h2o`` alone evicts 16 at a time.

The scheduler frees those slots, always those that the step which may still be running does not read (``cache``); the
attention backend reads the others, over a page table that begins at the first kept slot (``backend``). Prompt lengths
are kept on the device by request slot, and all arithmetic of a step is done there, so that nothing waits for the host.
Positions stay those of the text: keys are rotated before they are stored.

``policy`` says with which block a method's policy runs; ``cache`` frees; ``admission`` is what SGLang's scheduler
reckons a running request will still need, and where a retracted request's chunks end; ``pool`` has room for scores
beside keys and values; ``hooked`` puts all of it in place; ``limits`` refuses.
"""
