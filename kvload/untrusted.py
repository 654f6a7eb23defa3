"""What may go wrong with JSON that others wrote, named once for all who read it."""

import msgspec

DECODE_ERRORS: tuple[type[Exception], ...] = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)
"""What a decoder raises for bytes that are not what they should be: no JSON or other types (``MsgspecError``), no
UTF-8 or too many digits (``ValueError``), brackets nested too deep (``RecursionError``), a number too large for the
type that it should have (``OverflowError``)."""
