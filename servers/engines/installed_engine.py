"""What engines have in common that are installed beside kvload and offer KV-cache dtypes of their own."""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvload.servers.engines import settings
from kvload.servers.engines.arguments import flag_value
from kvload.servers.engines.base import Adapter, Build, LaunchPlan, LaunchRequest, Offer, served_name
from kvload.servers.engines.settings import Setting
from kvload.servers.host.devices import AMD, vendor
from kvload.servers.host.installed import ROCM, Installed, find_python, look
from kvload.servers.host.machine import Machine
from kvload.servers.host.model_facts import ModelFacts

SOURCE_LIMIT = 4 * 2**20


class InstalledEngine(Adapter):
    """An engine in a Python environment; a subclass says what is its own.

    Attributes:
        distributions: names its package goes by in an index.
        settings: its KV-cache settings by method.
        dtype_source: file inside its package that lists the KV-cache dtypes it accepts.
        dtype_lists: expressions that find the list there, newest spelling first.
    """

    distributions: tuple[str, ...]
    settings: Mapping[str, Setting]
    dtype_source: tuple[str, ...]
    dtype_lists: tuple[re.Pattern[str], ...]

    def find(self, python: str | None, env: Mapping[str, str], machine: Machine) -> Build | None:
        """By the package's metadata, or by its own version file where it has none.

        Raises:
            UsageError: the Python does not run.
        """
        path = find_python(python)
        found = look({self.name: self.distributions}, path, env).get(self.name)
        if found is None:
            return None
        return Build(
            self.name,
            path,
            found.version,
            "cpu" if self.is_cpu_build(found) else "cuda",
            found.release,
            accepted_dtypes(found.folder, self.dtype_source, self.dtype_lists),
            self.problem(found, machine),
        )

    def is_cpu_build(self, found: Installed) -> bool:
        """Whether it was built to run without a GPU."""
        return found.cuda is None

    @abstractmethod
    def problem(self, found: Installed, machine: Machine) -> str | None:
        """What keeps the installation from working here."""

    def plan(self, request: LaunchRequest, port: int, build: Build, model: ModelFacts, machine: Machine) -> LaunchPlan:
        """The engine's command line with the method's setting.

        Raises:
            UsageError: the installed engine cannot do what is asked here.
        """
        row, dtype, known = settings.pick(self.settings, request.chosen, self.name)
        if known:
            settings.refuse_obstacle(self.settings, row, build, model, machine)
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if model.folder is not None else {}
        element_bytes = settings.element_bytes(flag_value(request.engine_args, "--dtype"), model)
        return self.command(
            request,
            row,
            dtype,
            port,
            build,
            model,
            LaunchPlan(
                command=(),
                env=offline,
                served_name=served_name(model),
                claim=settings.claim_of(row, model, element_bytes),
                compresses=settings.compresses(row),
                error_limit=row.error_limit,
                notes=tuple(filter(None, (build.problem, row.note))),
            ),
        )

    @abstractmethod
    def command(
        self,
        request: LaunchRequest,
        row: Setting,
        dtype: str,
        port: int,
        build: Build,
        model: ModelFacts,
        plan: LaunchPlan,
    ) -> LaunchPlan:
        """The plan with its command line, and what else the engine needs.

        Args:
            row, dtype: the method's setting, and the value of ``--kv-cache-dtype``.
            plan: with all that does not depend on the engine.

        Raises:
            UsageError: the engine cannot be told what is asked.
        """

    def offers(self) -> Mapping[str, Offer]:
        """A row for each setting."""
        return {
            name: Offer(
                self.name,
                "kvload's plugin" if row.plugin else f"--kv-cache-dtype {row.dtype}",
                settings.stated_bytes(row),
                row.note,
            )
            for name, row in self.settings.items()
        }


def accepted_dtypes(
    folder: Path | None, source: Sequence[str], lists: Sequence[re.Pattern[str]]
) -> frozenset[str] | None:
    """The values ``--kv-cache-dtype`` takes, read from an engine's source; None where they are not found there."""
    if folder is None:
        return None
    try:
        text = folder.joinpath(*source).read_text(encoding="utf-8", errors="replace")[:SOURCE_LIMIT]
    except OSError:
        return None
    match = next((found for expression in lists if (found := expression.search(text))), None)
    return frozenset(re.findall(r"[\"']([\w.-]+)[\"']", match.group(1))) or None if match else None


def method_of_dtype(dtype: object) -> str | None:
    """A KV-cache dtype that a server states, as a method: ``none`` or ``raw:NAME``."""
    if not isinstance(dtype, str):
        return None
    return "none" if dtype in settings.PLAIN_DTYPES else f"raw:{dtype}"


def no_gpu_for(found: Installed, machine: Machine) -> str | None:
    """What keeps an engine that needs a GPU from working here: there is none of the kind it was built for."""
    if found.cuda is not None and found.cuda.startswith(ROCM):
        return None if vendor() is AMD else "it is built for ROCm, and there is no AMD GPU"
    return None if machine.gpus else "it needs a GPU, and there is none"
