"""The guard before the web page: what a browser on another site would send, against a real Locust page."""

import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

import pytest
from flask import Flask
from flask_cors import CORS

from kvload.workloads.swarm.web_guard import WebGuard

ROUTES = ("/", "/kvload/", "/kvload/data", "/stats/requests", "/logs", "/stop", "/exceptions")
FOREIGN = (
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Host": "evil.example"},
    {"Host": "evil.example:8089", "Origin": "http://evil.example:8089"},
    {"Host": ""},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
)


@pytest.fixture
def app() -> Flask:
    """An application as Locust makes it: CORS for everybody, and a route that takes plain forms."""
    app = Flask("page")
    CORS(app)

    @app.route("/swarm", methods=["POST"])  # type: ignore[untyped-decorator]
    def swarm() -> str:
        return "started"

    @app.route("/data")  # type: ignore[untyped-decorator]
    def data() -> str:
        return "figures"

    return app


def ask(app: Flask, host: str | None, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str]]:
    app.wsgi_app = WebGuard(app.wsgi_app, host)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = app.test_client().open(path, method=method, headers=named)
    return answer.status_code, dict(answer.headers)


@pytest.mark.parametrize("host", ["localhost:8089", "127.0.0.1:8089", "[::1]:8089", "127.9.9.9"])
def test_the_machines_own_names_are_let_in(app: Flask, host: str) -> None:
    status, headers = ask(app, "127.0.0.1", "/data", Host=host, Origin=f"http://{host}", Sec_Fetch_Site="same-origin")
    assert status == 200
    assert not any(name.lower().startswith("access-control-") for name in headers)


@pytest.mark.parametrize(
    ("web_host", "host", "status"),
    [
        ("10.1.2.3", "10.1.2.3:8089", 200),
        ("10.1.2.3", "10.1.2.4:8089", 403),
        ("node7.cluster", "node7.cluster:8089", 200),
        ("0.0.0.0", "192.0.2.7:8089", 200),
        ("0.0.0.0", "rebound.example:8089", 403),
        ("", "rebound.example:8089", 403),
        ("127.0.0.1", "192.0.2.7:8089", 403),
    ],
)
def test_the_host_that_was_asked_for_is_let_in(app: Flask, web_host: str, host: str, status: int) -> None:
    assert ask(app, web_host, "/data", Host=host)[0] == status


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize(("path", "method"), [("/data", "GET"), ("/swarm", "POST"), ("/data", "OPTIONS")])
def test_everything_foreign_is_refused(app: Flask, headers: dict[str, str], path: str, method: str) -> None:
    given = {"Host": "127.0.0.1:8089", **headers}
    status, answered = ask(app, "127.0.0.1", path, method, **{k.replace("-", "_"): v for k, v in given.items()})
    assert status == 403
    assert not any(name.lower().startswith("access-control-") for name in answered)


def test_a_real_page_refuses_the_preflight_the_form_and_the_reads(page: tuple[str, Any]) -> None:
    url = page[0].removesuffix("/kvload/")

    def status(path: str, method: str, headers: dict[str, str], body: bytes | None = None) -> int:
        request = urllib.request.Request(url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert not list(_cors(answer.headers))
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                granted = list(_cors(error.headers))
                code = error.code
        assert granted == []
        return code

    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-Kvload"}
    foreign = {"Origin": "http://evil.example"}
    assert status("/kvload/start", "OPTIONS", foreign | preflight) == 403
    assert status("/swarm", "POST", foreign, b"user_count=1&spawn_rate=1") == 403
    assert status("/stop", "POST", foreign | {"Content-Type": "text/plain"}, b"x") == 403
    for route in ROUTES:
        assert status(route, "GET", foreign) == 403, route
        assert status(route, "GET", {"Host": "evil.example"}) == 403, route
        assert status(route, "GET", {"Sec-Fetch-Site": "cross-site"}) == 403, route
    assert status("/stats/requests", "GET", {}) == 200


def _cors(headers: Any) -> Iterable[str]:
    return (name for name in headers if name.lower().startswith("access-control-"))
