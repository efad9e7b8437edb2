"""The files of deploy/: their commands are ours, their names lead somewhere, their metrics are."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
import yaml

from deploy_processes import ROOT, services
from flashback.cli.main import app
from flashback.engines.protocol import CacheUse
from flashback.server.metrics import Metrics
from flashback.server.scheduler import Load

KUBERNETES = ROOT / "deploy" / "kubernetes"
COMPOSE = services({"POSTGRES_PASSWORD": "secret", "TEXTS": "/texts"})
OBJECTS = [
    one
    for path in sorted(KUBERNETES.glob("*.yaml"))
    for one in yaml.safe_load_all(path.read_text("utf-8"))
]


def objects(kind: str) -> list[dict[str, Any]]:
    return [one for one in OBJECTS if one.get("kind") == kind]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the template of everything that makes pods."""
    for one in OBJECTS:
        if "template" in one.get("spec", {}):
            yield one["metadata"]["name"], one["spec"]["template"]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, template in pods():
        for one in template["spec"]["containers"]:
            yield f"{name}/{one['name']}", one


def commands() -> dict[str, list[str]]:
    """What follows `flashback`, by where it stands."""
    found = {
        f"compose {name}": one["command"]
        for name, one in COMPOSE.items()
        if one.get("entrypoint") == ["flashback"]
    }
    ours = {name: one for name, one in containers() if one.get("command") == ["flashback"]}
    return found | {name: one["args"] for name, one in ours.items()}


@pytest.mark.parametrize("where", commands())
def test_commands_are_accepted(where: str) -> None:
    words = commands()[where]
    command: click.Command = app
    context = app.make_context("flashback", list(words))
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, found.make_context(name, rest, parent=context)
    assert command.name == "serve"


def test_there_are_the_services_that_the_page_names() -> None:
    assert list(COMPOSE) == ["store", "fill", "vllm", "flashback", "front"]
    assert len(commands()) == 4


def addresses(words: list[str]) -> Iterator[tuple[str, int]]:
    """The hosts and ports that a command asks."""
    for word in words:
        value = word.partition("=")[2] if word.startswith("--") else word
        if "://" in value:
            parts = urlsplit(value.removeprefix("dns+"))
            yield str(parts.hostname), parts.port or 5432


def test_the_addresses_of_compose_are_services() -> None:
    for one in COMPOSE.values():
        for host, port in addresses(one.get("command", [])):
            assert host in COMPOSE
            assert port == (5432 if host == "store" else 8000)
        for name, how in one.get("depends_on", {}).items():
            needed = "service_completed_successfully" if name == "fill" else "service_healthy"
            assert how["condition"] == needed
    assert COMPOSE["vllm"]["healthcheck"]["test"][-1].endswith(":8000/health")


def test_the_addresses_of_kubernetes_are_services_of_pods() -> None:
    ports = {
        (one["metadata"]["name"], port["port"])
        for one in objects("Service")
        for port in one["spec"]["ports"]
    }
    for name, template in pods():
        own = {
            ("127.0.0.1", port["containerPort"])
            for one in template["spec"]["containers"]
            for port in one.get("ports", [])
        }
        for one in template["spec"]["containers"]:
            assert set(addresses(one.get("args", []))) <= ports | own, name
    labels = [template["metadata"]["labels"] for _, template in pods() if "metadata" in template]
    for service in objects("Service"):
        assert service["spec"]["selector"] in labels
    for kind in ("Deployment", "StatefulSet"):
        for one in objects(kind):
            selected = one["spec"]["selector"]["matchLabels"]
            assert selected == one["spec"]["template"]["metadata"]["labels"]
    for budget in objects("PodDisruptionBudget"):
        assert budget["spec"]["selector"]["matchLabels"] in labels
    (headless,) = (one for one in objects("Service") if one["spec"].get("clusterIP") == "None")
    assert f"--replica=dns+http://{headless['metadata']['name']}:8000" in commands()["front/front"]


def test_probes_ask_what_is_answered_without_a_key() -> None:
    probed = 0
    for name, one in containers():
        names = {port.get("name") for port in one.get("ports", [])}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if asked := one.get(kind, {}).get("httpGet"):
                assert asked["path"] in ("/", "/health"), name
                assert asked["port"] in names
                probed += 1
    assert probed == 7


def test_requests_end_before_their_pod_is_killed() -> None:
    for _, template in pods():
        for one in template["spec"]["containers"]:
            for word in one.get("args", []):
                if found := re.fullmatch(r"--grace=(\d+)", word):
                    before = one.get("lifecycle", {}).get("preStop", {})
                    waits = int(before["exec"]["command"][1]) if before else 0
                    assert waits + int(found[1]) < template["spec"]["terminationGracePeriodSeconds"]


def test_replicas_are_added_by_a_metric_that_is_exported() -> None:
    (scaler,) = objects("HorizontalPodAutoscaler")
    target = scaler["spec"]["scaleTargetRef"]
    assert target["name"] in [one["metadata"]["name"] for one in objects(target["kind"])]
    (metric,) = (one["pods"]["metric"] for one in scaler["spec"]["metrics"])
    shown = Metrics().render(Load(1, 2), CacheUse(0, 0, 0)).decode()
    (label,) = metric["selector"]["matchLabels"].items()
    assert f'{metric["name"]}{{{label[0]}="{label[1]}"}} 2.0' in shown
    (rules,) = (one["rules"]["custom"] for one in OBJECTS if "rules" in one)
    assert rules[0]["seriesQuery"].startswith(metric["name"])
    for name in ("replica", "front"):
        (deployment,) = (one for one in objects("Deployment") if one["metadata"]["name"] == name)
        notes = deployment["spec"]["template"]["metadata"]["annotations"]
        assert notes == {"prometheus.io/scrape": "true", "prometheus.io/port": "8000"}


def test_the_image_has_what_the_commands_need() -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    extras = set(re.findall(r"'\.\[([\w,]+)\]'", text)[0].split(","))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {"serve", "remote", "postgres"} <= extras <= set(project["optional-dependencies"])
    (script,) = (one["entrypoint"][1] for name, one in COMPOSE.items() if name == "fill")
    (fill,) = (one for name, one in containers() if name == "fill-store/fill")
    assert fill["command"][1] == script
    folder, _, file = script.rpartition("/")
    assert f"COPY deploy/{file} {folder}/" in text
    assert f"!deploy/{file}" in (ROOT / ".dockerignore").read_text("utf-8").splitlines()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_reads_the_folder() -> None:
    made = subprocess.run(["kubectl", "kustomize", str(KUBERNETES)], capture_output=True)
    assert made.returncode == 0, made.stderr
    names = [one["metadata"]["name"] for one in yaml.safe_load_all(made.stdout)]
    wanted = [one["metadata"]["name"] for one in OBJECTS if "apiVersion" in one and "spec" in one]
    assert sorted(names) == sorted(wanted)


def test_every_file_of_the_folder_is_applied_or_explained() -> None:
    (kustomization,) = (one for one in OBJECTS if one.get("kind") == "Kustomization")
    names = {path.name for path in KUBERNETES.iterdir()}
    rest = names - set(kustomization["resources"]) - {"kustomization.yaml"}
    page = (Path(ROOT) / "docs" / "scaling.md").read_text("utf-8")
    assert rest == {"prometheus-adapter.yaml"}
    assert all(name in page for name in names)
