"""A worker for a master on another machine: Locust's own worker, with our file, as a child of this process."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping

from kvload.workloads.run.generator import LOCUSTFILE
from kvload.workloads.run.headers import child_environment


def run_worker(master_host: str, master_port: int, headers: Mapping[str, str], token: str = "") -> int:
    """Work for a master until it has had enough of us; returns Locust's exit code.

    The schedule and the server's address come from the master, the headers (keys) do not: they are this machine's own.
    The child ends with this process.

    Args:
        token: the run's, which master and worker prove to each other; see ``kvload replay --master``.
    """
    held, leash = os.pipe()
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--worker", "--config", os.devnull]
    command += ["--master-host", master_host, "--master-port", str(master_port), "--kvload-control-fd", str(held)]
    environment = child_environment(headers, token=token)
    child = subprocess.Popen(command, env=environment, pass_fds=(held,), start_new_session=True)
    os.close(held)
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(10.0)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            child.kill()
            child.wait()
        raise
    finally:
        os.close(leash)
