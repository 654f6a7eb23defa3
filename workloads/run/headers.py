"""Request headers and keys: from flags and environment to the client, and nowhere else."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import kvload
from kvload.keys import api_key, bearer
from kvload.workloads.client.http1 import check_headers

HEADERS_VARIABLE = "KVLOAD_HEADERS"
"""Environment variable that hands headers to the Locust processes: they stand in no file and on no command line."""


def request_headers(headers: Mapping[str, str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The user's headers, with ``Authorization`` made of the environment's key where they have none.

    Raises:
        UsageError: a header that cannot be sent, or a key with characters that no header may carry.
    """
    check_headers(headers)
    found = dict(headers)
    key = api_key(os.environ if environ is None else environ)
    if key and not any(name.lower() == "authorization" for name in found):
        found |= bearer(key)
    return found


TOKEN_VARIABLE = "KVLOAD_WORKER_TOKEN"  # noqa: S105
"""Environment variable that holds the token of a run; its processes inherit it from ``kvload replay``."""

RUN_FOLDER_VARIABLE = "KVLOAD_RUN_FOLDER"
"""Environment variable that names the run folder to the workers that ``kvload replay`` starts itself: they end with it,
and write their records there. All others send theirs to the master, so that none comes after its end."""


def child_environment(
    headers: Mapping[str, str],
    environ: Mapping[str, str] | None = None,
    *,
    token: str = "",
    run_folder: Path | None = None,
) -> dict[str, str]:
    """The environment of a Locust process: the headers in it, and none of the user's settings for other Locust runs.

    A checkout that is not installed is importable where the command was started, but not in the run folder where these
    processes live: it is put on their path.
    """
    found = dict(os.environ if environ is None else environ)
    found = {name: value for name, value in found.items() if not name.startswith("LOCUST_")}
    root = Path(kvload.__file__).parents[1]
    if (root / "pyproject.toml").is_file():
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (found.get("PYTHONPATH"), str(root))))
    found.pop(RUN_FOLDER_VARIABLE, None)
    if run_folder is not None:
        found[RUN_FOLDER_VARIABLE] = str(run_folder.resolve())
    return found | {HEADERS_VARIABLE: json.dumps(dict(headers)), TOKEN_VARIABLE: token}


def inherited_headers(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The headers a Locust process was given, or those its own environment makes."""
    given = (os.environ if environ is None else environ).get(HEADERS_VARIABLE)
    return request_headers({}, environ) if given is None else dict(json.loads(given))
