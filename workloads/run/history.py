"""A run's live figures over time, as the web page draws them."""

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from kvload.workloads.run.live import METRICS, LiveBoard, LogHistogram

WINDOW_POINTS = 10
KEPT_POINTS = 7200


class LiveHistory:
    """Points one second apart; percentiles, attainment and rates are those of the last :data:`WINDOW_POINTS`."""

    def __init__(self) -> None:
        self._points: deque[dict[str, Any]] = deque(maxlen=KEPT_POINTS)
        self._made = 0
        self._former: deque[tuple[float, dict[str, npt.NDArray[np.int64]], tuple[int, int, int]]] = deque(
            maxlen=WINDOW_POINTS
        )
        self._snapshot: tuple[float, dict[str, npt.NDArray[np.int64]], tuple[int, int, int]] | None = None
        self.cache_usage: float | None = None

    def add(self, point: dict[str, Any]) -> None:
        """Keep a point that was just made."""
        if self._snapshot is not None:
            self._former.append(self._snapshot)
        self._points.append(point)
        self._made += 1

    def since(self, number: int) -> tuple[list[dict[str, Any]], int]:
        """The points from that number on, and the number of the next one."""
        missed = self._made - max(number, 0)
        return list(self._points)[max(0, len(self._points) - missed) :] if missed > 0 else [], self._made

    def point(self, board: LiveBoard, elapsed_s: float) -> dict[str, Any]:
        """The run as it stands ``elapsed_s`` after its zero; None where there is nothing to tell."""
        counts = {name: board.histograms[name].counts.copy() for name in METRICS}
        totals = (board.judged, board.met, board.tokens)
        self._snapshot = (elapsed_s, counts, totals)
        then_s, former, (judged, met, tokens) = self._former[0] if self._former else (0.0, {}, (0, 0, 0))
        point: dict[str, Any] = {"t": round(elapsed_s, 1), "cache_usage": self.cache_usage}
        for name in ("planned", "sent", "done", "failed", "unsent", "in_flight"):
            point[name] = board.total(name)
        for name in METRICS:
            window = LogHistogram()
            window.counts = counts[name] - former[name] if name in former else counts[name]
            for percent in (50, 90, 99):
                point[f"{name}_p{percent}"] = window.quantile(percent / 100)
        span_s = elapsed_s - then_s
        fresh = totals[0] - judged
        point["attainment"] = (totals[1] - met) / fresh if fresh and board.slo else None
        point["total_attainment"] = board.met / board.judged if board.judged and board.slo else None
        point["goodput"] = (totals[1] - met) / span_s if span_s > 0 and board.slo else None
        point["token_rate"] = (totals[2] - tokens) / span_s if span_s > 0 else None
        return point
