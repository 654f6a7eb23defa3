"""The live page: its data, its guard, and the page itself in a real browser."""

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvload.rundir import RunDir
from kvload.workloads.run.history import LiveHistory
from kvload.workloads.run.live import LiveBoard, LiveReport, LogHistogram
from tests.workloads.swarm.conftest import fetch, free_port

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[3] / "workloads" / "swarm" / "webui_page.html"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
]


def state(url: str) -> dict[str, Any]:
    return dict(json.loads(fetch(f"{url}data")))


def wait_for(url: str, wanted: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (found := state(url))["state"] != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def test_start_stop_and_the_report_afterwards(page: tuple[str, subprocess.Popen[str]], tmp_path: Path) -> None:
    url, process = page
    assert state(url)["state"] == "waiting"
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(f"{url}start", method="POST")
    assert refused.value.code == 403
    refused.value.close()
    assert state(url)["state"] == "waiting"
    fetch(f"{url}start", headers={"X-Kvload": "1"}, method="POST")
    wait_for(url, "running")
    while not (points := state(url)["points"]) or not points[-1]["done"]:
        time.sleep(0.2)
    fetch(f"{url}stop", headers={"X-Kvload": "1"}, method="POST")
    now = wait_for(url, "over")["now"]
    assert now["sent"] == now["done"]
    assert 0 < now["sent"] < 60
    figures = json.loads(fetch(url.replace("/kvload/", "/stats/requests")))
    assert figures["extended_stats"][0]["key"] == "kvload"
    process.terminate()
    output, _ = process.communicate(timeout=60)
    manifest = RunDir.open(tmp_path / "run").manifest()
    assert (manifest.partial, manifest.sent, manifest.unsent) == (True, now["sent"], 60 - now["sent"])
    assert "partial" in output
    assert process.returncode == 130


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = PAGE.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|<link|<img|@import|src=", text)


class Browser:
    """Chromium by the WebDriver protocol (https://www.w3.org/TR/webdriver2/), as far as needed here."""

    def __init__(self, port: int, profile: Path) -> None:
        self.base = f"http://127.0.0.1:{port}"
        options = {"args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self.base += f"/session/{self._call('/session', wanted)['sessionId']}"

    def _call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        return json.loads(fetch(self.base + path, body, {"Content-Type": "application/json"}, method))["value"]

    def open(self, url: str) -> None:
        self._call("/url", {"url": url})

    def run(self, script: str) -> Any:
        return self._call("/execute/sync", {"script": script, "args": []})

    def close(self) -> None:
        self._call("", method="DELETE")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("needs chromium and chromedriver")
    port = free_port()
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                fetch(f"http://127.0.0.1:{port}/status")
                break
            except OSError:
                assert time.monotonic() < deadline, "chromedriver did not come up"
                time.sleep(0.1)
        found = Browser(port, tmp_path / "profile")
        yield found
        found.close()
    finally:
        driver.terminate()
        driver.wait(30)


def test_in_a_browser(page: tuple[str, subprocess.Popen[str]], browser: Browser) -> None:
    url, _ = page
    browser.open(url)

    def until(script: str) -> None:
        deadline = time.monotonic() + 60
        while not browser.run(f"return Boolean({script})"):
            assert time.monotonic() < deadline, script
            time.sleep(0.2)

    until("document.getElementById('state').textContent === 'waiting'")
    until("!document.getElementById('start').disabled && document.getElementById('stop').disabled")
    browser.run("document.getElementById('start').click()")
    until("document.getElementById('state').textContent === 'running'")
    until("document.querySelectorAll('figure').length === 9")
    # every chart but none has drawn a line of several points
    drawn = (
        "[...document.querySelectorAll('figure')].filter(f => f.querySelector('path').getAttribute('d').includes('L'))"
    )
    until(f"{drawn}.length === 9")
    until("document.querySelectorAll('.tile b')[4].textContent.includes('%')")
    browser.run("document.getElementById('stop').click()")
    until("document.getElementById('state').textContent === 'over'")


def test_histograms_agree_with_sorting() -> None:
    histogram = LogHistogram()
    values = [0.001 * 1.01**number for number in range(1, 800)]
    for value in values[:400]:
        histogram.add(value)
    import numpy as np

    histogram.add_us(np.array(values[400:]) * 1e6)
    other = LogHistogram()
    other.merge(histogram.filled())
    for share in (0.1, 0.5, 0.99):
        assert other.quantile(share) == pytest.approx(float(np.quantile(values, share)), rel=0.03)
    assert LogHistogram().quantile(0.5) is None


def test_history_is_of_the_last_seconds() -> None:
    board, history = LiveBoard({"ttft": 1.0}), LiveHistory()
    for second in range(30):
        slow = LogHistogram()
        slow.add(0.1 if second < 15 else 1.0)
        board.take(LiveReport(worker=0, sent=second, judged=1, met=int(second < 15), added={"ttft": slow.filled()}))
        history.add(history.point(board, second + 1.0))
    points, following = history.since(0)
    assert (len(points), following) == (30, 30)
    assert points[10]["ttft_p50"] == pytest.approx(0.1, rel=0.03)
    assert points[29]["ttft_p50"] == pytest.approx(1.0, rel=0.03)
    assert (points[10]["attainment"], points[29]["attainment"], points[29]["total_attainment"]) == (1.0, 0.0, 0.5)
    assert history.since(28)[0] == points[28:]
    assert history.since(30)[0] == []
