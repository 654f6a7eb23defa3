"""Runs with SGLang's source on the path: prints, as JSON, its version and what of the contract it does not keep.

PYTHONPATH=SOURCE:CHECKOUT python contract_checks.py
"""

import json

from tests.sglang import stubs

stubs.install()

import sglang

from kvload.servers.plugins.sglang import contract, table
from kvload.servers.plugins.vllm.contract import ContractError, check_function

broken = {}
for expected in {*contract.EXPECTED, *(one for row in table.ROWS.values() for one in row.expects)}:
    try:
        check_function(expected, sglang.__version__, "SGLang")
    except ContractError as error:
        broken[expected.place] = str(error)
print(json.dumps({"version": sglang.__version__, "broken": broken}))  # noqa: T201
