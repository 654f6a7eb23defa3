"""kvload's mock server as an engine that is launched: fast to start, of known timing, deaf to GPUs."""

import os
import sys
from typing import Any

from kvload.servers.engines.base import Adapter, Build, LaunchPlan


class MockAdapter(Adapter):
    """Starts ``kvload mock``; the method ``int8`` is one whose server does not start on the GPU in ``BROKEN_GPU``."""

    name = "mock"
    start_timeout_s = 60.0
    stop_grace_s = 3.0
    tensor_flags = ("--tensor",)

    def find(self, *_: Any) -> Any:
        return Build("mock", sys.executable, "1.0", "cpu")

    def plan(self, request: Any, port: int, *_: Any) -> Any:
        command = [sys.executable, "-u", "-m", "kvload", "mock", "--port", str(port), "--ttft", "20ms", "--itl", "5ms"]
        if request.gpus and os.environ.get("BROKEN_GPU") in request.gpus:
            words = "raise RuntimeError('No CUDA GPUs are available')"
            command = [sys.executable, "-c", words]
        return LaunchPlan(command=tuple(command), env={}, served_name="mock")
