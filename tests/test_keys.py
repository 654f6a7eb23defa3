"""Keys: whose counts, what is refused, and that no message holds one."""

import pytest

from kvload.errors import UsageError
from kvload.keys import api_key, key_named


def test_the_flag_comes_before_kvloads_variable_and_that_before_openais() -> None:
    environ = {"KVLOAD_API_KEY": "own", "OPENAI_API_KEY": "other"}
    assert api_key(environ, "given") == "given"
    assert api_key(environ) == "own"
    assert api_key({"OPENAI_API_KEY": "other"}) == "other"
    assert api_key({"KVLOAD_API_KEY": "", "OPENAI_API_KEY": "other"}) == "other"
    assert api_key({}) is None


@pytest.mark.parametrize("tail", ["\n", "\r\n", "\rx", "\x00", "é", "\x7f", " "])
def test_a_key_no_header_can_carry_is_refused_without_being_shown(tail: str) -> None:
    with pytest.raises(UsageError) as caught:
        api_key({"KVLOAD_API_KEY": f"sk-planted{tail}"})
    assert "KVLOAD_API_KEY" in str(caught.value)
    assert "planted" not in str(caught.value)


def test_a_named_variable_must_be_there() -> None:
    assert key_named("MY_KEY", {"MY_KEY": "abc"}, "--arm-key") == "abc"
    with pytest.raises(UsageError, match="MY_KEY is not set"):
        key_named("MY_KEY", {}, "--arm-key")
