"""The Kubernetes manifests of docs/fleet.md: they fit together, and their job's command is one that kvload takes."""

from pathlib import Path
from typing import Any

import pytest

from kvload.cli.main import run
from kvload.workloads.mock.behaviour import MockSettings
from tests.workloads.run.test_probe import serving

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

PAGE = Path(__file__).parents[2] / "docs" / "fleet.md"


@pytest.fixture
def manifests() -> dict[str, Any]:
    """By kind."""
    (text,) = [part.partition("```")[0] for part in PAGE.read_text(encoding="utf-8").split("```yaml\n")[1:]]
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def test_the_service_finds_the_servers_and_the_job_keeps_away_from_them(manifests: dict[str, Any]) -> None:
    assert set(manifests) == {"Deployment", "Service", "Job"}
    deployment, service, job = (manifests[kind] for kind in ("Deployment", "Service", "Job"))
    pod = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"] == service["spec"]["selector"]
    (container,) = pod["spec"]["containers"]
    (port,) = [each["containerPort"] for each in container["ports"]]
    assert container["readinessProbe"]["httpGet"]["port"] == port == service["spec"]["ports"][0]["port"]
    rules = job["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"]
    (rule,) = rules["requiredDuringSchedulingIgnoredDuringExecution"]
    (expression,) = rule["labelSelector"]["matchExpressions"]
    assert expression["key"] in pod["metadata"]["labels"]
    for spec in (pod["spec"], job["spec"]["template"]["spec"]):
        mounted = {mount["name"] for each in spec["containers"] for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_the_jobs_command_is_taken(
    manifests: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (container,) = manifests["Job"]["spec"]["template"]["spec"]["containers"]
    service = manifests["Service"]
    address = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert f"--arm=fp8={address}" in container["args"]
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"arrival": 0.0, "input_length": 20, "output_length": 5}\n', encoding="utf-8")
    with serving(MockSettings()) as here:
        known = {"/data/trace.jsonl": str(trace), "/data/runs": str(tmp_path), "http://arm-fp8:8000": here.url}
        known["http://arm-none:8000"] = here.url
        words = []
        for word in container["args"]:
            for name, value in known.items():
                word = word.replace(name, value)  # noqa: PLW2901
            words.append(word)
        assert run([*words, "--dry-run"]) == 0
    assert "3 arms, 15 runs" in capsys.readouterr().err
