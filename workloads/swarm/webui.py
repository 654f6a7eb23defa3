"""Our page beside Locust's own: a run's live figures as charts, and the buttons that start and stop it.

The page is one file without assets from elsewhere. It asks for the points that are new since its last question; whether
anybody looks or not makes no difference to the run. A guard before all routes keeps other hosts, origins and sites out.
"""

import json
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, request

from kvload.workloads.swarm.coordinator import Coordinator
from kvload.workloads.swarm.web_guard import WebGuard

PAGE = Path(__file__).with_name("webui_page.html")
GUARD_HEADER = "X-Kvload"
TAB = {"title": "kvload", "key": "kvload"}


def add_page(web_ui: Any, coordinator: Coordinator, start: Any, stop: Any) -> None:
    """Add the page at ``/kvload`` to Locust's web server, and a table with the main figures to Locust's own page.

    Args:
        web_ui: Locust's ``environment.web_ui``.
        start, stop: called without arguments when somebody presses the buttons.
    """
    pages = Blueprint("kvload", __name__, url_prefix="/kvload")

    @pages.get("/")  # type: ignore[untyped-decorator]
    def page() -> Response:
        answer = Response(PAGE.read_text(encoding="utf-8"), mimetype="text/html")
        answer.headers["Content-Security-Policy"] = (
            "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        )
        return answer

    @pages.get("/data")  # type: ignore[untyped-decorator]
    def data() -> Response:
        since = request.args.get("since", default=0, type=int)
        return _json(coordinator.history_since(since))

    @pages.post("/start")  # type: ignore[untyped-decorator]
    def start_run() -> Response:
        return _guarded(start)

    @pages.post("/stop")  # type: ignore[untyped-decorator]
    def stop_run() -> Response:
        return _guarded(stop)

    web_ui.app.register_blueprint(pages)
    web_ui.app.wsgi_app = WebGuard(web_ui.app.wsgi_app, web_ui.host)
    structure = [{"key": "figure", "title": "Figure"}, {"key": "value", "title": "Value"}]
    web_ui.template_args["extended_tabs"] = [TAB]
    web_ui.template_args["extended_tables"] = [{"key": TAB["key"], "structure": structure}]

    @web_ui.app.after_request  # type: ignore[untyped-decorator]
    def extend_stats(answer: Response) -> Response:
        if request.path.rstrip("/").endswith("/stats/requests") and answer.is_json:
            figures = json.loads(answer.get_data())
            figures["extended_stats"] = [{"key": TAB["key"], "data": _rows(coordinator.point())}]
            answer.set_data(json.dumps(figures))
        return answer


def _guarded(action: Any) -> Response:
    if request.headers.get(GUARD_HEADER) != "1":
        return Response("missing header", status=403)
    action()
    return _json({"ok": True})


def _json(value: Any) -> Response:
    return Response(json.dumps(value), mimetype="application/json", headers={"Cache-Control": "no-store"})


def _rows(point: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {"figure": _figure(name), "value": "–" if value is None else f"{value:.4g}"}
        for name, value in point.items()
        if not isinstance(value, str)
    ]


def _figure(name: str) -> str:
    """A figure's name as readers know it: ``ttft_p50`` is ``TTFT p50, s``."""
    metric, separator, percentile = name.partition("_p")
    if separator and percentile.isdigit():
        return f"{metric if metric == 'lag' else metric.upper()} p{percentile}, s"
    return name.replace("_", " ")
