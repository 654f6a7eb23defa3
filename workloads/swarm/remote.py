"""A worker for a master on another machine: Locust's own worker, with our file, in this process's place."""

import os
import subprocess
import sys
from collections.abc import Mapping

from kvload.workloads.run.headers import child_environment
from kvload.workloads.run.replay import LOCUSTFILE


def run_worker(master_host: str, master_port: int, headers: Mapping[str, str]) -> int:
    """Work for a master until it has had enough of us; returns Locust's exit code.

    The schedule and the server's address come from the master, the headers (keys) do not: they are this machine's own.
    """
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--worker", "--config", os.devnull]
    command += ["--master-host", master_host, "--master-port", str(master_port)]
    return subprocess.call(command, env=child_environment(headers))
