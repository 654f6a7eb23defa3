"""The one reader of addresses."""

import contextlib
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.address import Address
from kvload.errors import UsageError


@pytest.mark.parametrize(
    ("text", "url", "authority", "prefix"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000", "127.0.0.1:8000", ""),
        ("http://host/v1/", "http://host", "host", ""),
        ("https://host:443/gateway/v1", "https://host/gateway", "host", "/gateway"),
        ("http://host/a/b/v1/chat/completions", "http://host/a/b", "host", "/a/b"),
        ("https://host/v1/completions", "https://host", "host", ""),
        ("http://[::1]:9", "http://[::1]:9", "[::1]:9", ""),
        ("[::1]:9/v1", "http://[::1]:9", "[::1]:9", ""),
        ("HTTP://Host.Example:8000", "http://host.example:8000", "host.example:8000", ""),
        ("http://host//v1//chat/completions/", "http://host", "host", ""),
        ("http://host:8000/metrics", "http://host:8000", "host:8000", ""),
        ("http://bücher.de/äb", "http://xn--bcher-kva.de/%C3%A4b", "xn--bcher-kva.de", "/%C3%A4b"),
    ],
)  # fmt: skip
def test_addresses(text: str, url: str, authority: str, prefix: str) -> None:
    address = Address.parse(text)
    assert (address.url, address.authority, address.prefix) == (url, authority, prefix)
    assert Address.parse(address.url) == address


@pytest.mark.parametrize(
    ("text", "chat", "models", "metrics"),
    [
        ("http://h", "/v1/chat/completions", "/v1/models", "/metrics"),
        ("http://h/gw", "/gw/v1/chat/completions", "/gw/v1/models", "/gw/metrics"),
        ("https://ark.example/api/v3", "/api/v3/chat/completions", "/api/v3/models", "/api/metrics"),
        ("https://ark.example/api/v3/", "/api/v3/chat/completions", "/api/v3/models", "/api/metrics"),
        ("https://ark.example/api/v3/chat/completions", "/api/v3/chat/completions", "/api/v3/models", "/api/metrics"),
        ("https://h/paas/v4/completions", "/paas/v4/chat/completions", "/paas/v4/models", "/paas/metrics"),
        ("https://h/v1beta/openai/chat/completions", "/v1beta/openai/chat/completions", "/v1beta/openai/models",
         "/v1beta/openai/metrics"),
        ("https://h/v3/v1/models", "/v3/v1/chat/completions", "/v3/v1/models", "/v3/metrics"),
        ("https://h/openai/deployments/d/chat/completions?api-version=2024-10-21",
         "/openai/deployments/d/chat/completions?api-version=2024-10-21",
         "/openai/deployments/d/models?api-version=2024-10-21", "/openai/deployments/d/metrics?api-version=2024-10-21"),
        ("http://h/?user=me", "/v1/chat/completions?user=me", "/v1/models?user=me", "/metrics?user=me"),
    ],
)  # fmt: skip
def test_where_the_endpoints_are(text: str, chat: str, models: str, metrics: str) -> None:
    address = Address.parse(text)
    assert [address.target(path) for path in ("/v1/chat/completions", "/v1/models", "/metrics")] == [
        chat,
        models,
        metrics,
    ]
    assert Address.parse(address.url) == address
    assert address.at("/v1/models").endswith(models)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("unix:///run/vllm.sock", "Unix socket"),
        ("http+unix://%2Frun%2Fvllm.sock", "Unix socket"),
        ("8000", "a number alone"),
        ("http://h/?api_key=secret", "looks like a key"),
        ("http://h/?sig=secret", "looks like a key"),
        ("http://h/?x=" + "secret" * 8, "looks like a key"),
        ("http://h/?secret", "looks like a key"),
        ("ws://h", "not an http"),
        (":8000", "not an http"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Address.parse(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["ftp://x", "http://", "", "http://x:99999", "http://x:abc", "http://x:0", "http://h/?key=secret", "http://h/#secret",
     "http://user:secret@host", "http://secret@host", "http://:secret@host", "http://a b/", "http://h\r\nX: secret/",
     "http://[::1", "http://[secret]", "http://a_%/"],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Address.parse(text, where="--arm a")
    assert caught.value.where == "--arm a"
    assert "secret" not in "".join(traceback.format_exception_only(caught.value)) + str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        address = Address.parse(text)
        address.url.encode("ascii")
        assert Address.parse(address.url) == address


@pytest.mark.parametrize(("text", "here"), [("127.0.0.2", True), ("localhost", True), ("[::1]", True), ("host", False)])
def test_loopback(text: str, here: bool) -> None:
    assert Address.parse(text).is_loopback is here


def test_certificates_are_checked_unless_told_otherwise() -> None:
    import ssl

    checked, believed = (
        Address.parse("https://h").tls_context(),
        Address.parse("https://h", insecure=True).tls_context(),
    )
    assert Address.parse("http://h").tls_context() is None
    assert checked is not None
    assert believed is not None
    assert (checked.verify_mode, checked.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (believed.verify_mode, believed.check_hostname) == (ssl.CERT_NONE, False)
