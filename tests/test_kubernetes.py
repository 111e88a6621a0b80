"""The manifests of docs/kubernetes against the schemas of Kubernetes and against what our server does."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import ValidationError, validate

from launcher.flags import BY_NAME

ROOT = Path(__file__).parents[1]
DIRECTORY = ROOT / "docs" / "kubernetes"
PATCH = "three-replicas.yaml"
FILES = sorted(path.name for path in DIRECTORY.glob("*.yaml") if path.name != PATCH)

#: The oldest and the newest release that the manifests are meant for.
RELEASES = ("1.29", "1.37")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DIRECTORY / name).read_text()))


def patched() -> dict[str, Any]:
    """The deployment with the patch, merged as ``kubectl patch`` does: objects by key, containers by name."""
    return merged(documents("deployment.yaml")[0], documents(PATCH)[0])


def merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}
    if isinstance(new, list) and new and isinstance(new[0], dict) and "name" in new[0]:
        by_name = {item["name"]: item for item in new}
        return [merged(item, by_name.get(item["name"], {})) for item in old]
    return copy.deepcopy(new)


DEPLOYMENTS = pytest.mark.parametrize(
    "deployment", [documents("deployment.yaml")[0], patched()], ids=["one device", "three replicas"]
)


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return only


def environment(deployment: dict[str, Any]) -> dict[str, str]:
    return {v["name"]: v["value"] for v in container(deployment)["env"] if "value" in v}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", FILES)
def test_every_object_has_the_form_that_the_api_wants_and_no_unknown_field(name, release):
    objects = documents(name)
    assert objects
    for one in objects:
        validate(one, release, strict=True)


@pytest.mark.parametrize("release", RELEASES)
def test_the_patched_deployment_has_it_too(release):
    validate(patched(), release, strict=True)


def test_the_schemas_see_a_misspelt_probe():
    deployment = documents("deployment.yaml")[0]
    probe = container(deployment).pop("livenessProbe")
    container(deployment)["livelinessProbe"] = probe
    with pytest.raises(ValidationError):
        validate(deployment, RELEASES[-1], strict=True)


@DEPLOYMENTS
def test_a_drain_ends_before_kubernetes_kills_the_pod(deployment):
    drain_s = int(environment(deployment)["GRACEFUL_TERMINATION_TIMEOUT"])
    # the supervisor gives the router 3 s more, then each generator 5 s
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= drain_s + 3 + 5


@DEPLOYMENTS
def test_traffic_follows_health_and_a_restart_of_a_generator_is_not_a_reason_to_kill_the_pod(deployment):
    probes = {
        name: container(deployment)[name]["httpGet"]
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert probes["startupProbe"]["path"] == probes["readinessProbe"]["path"] == "/health"
    assert probes["livenessProbe"]["path"] == "/metrics"
    (port,) = container(deployment)["ports"]
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert environment(deployment)["PORT"] == str(port["containerPort"])
    (service,) = (one for one in documents("service.yaml") if one["kind"] == "Service")
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]


@DEPLOYMENTS
def test_the_devices_that_are_asked_for_hold_the_cores_of_all_replicas(deployment):
    resources = container(deployment)["resources"]
    devices = resources["limits"]["aws.amazon.com/neuron"]
    assert resources["requests"]["aws.amazon.com/neuron"] == devices, "an extended resource has no overcommit"
    flags = dict(arg[2:].split("=") for arg in container(deployment)["args"])
    cores = int(flags.get("num-shard", 2)) * int(flags.get("data-parallel-size", 1))
    assert cores <= 2 * devices


@DEPLOYMENTS
def test_every_flag_and_variable_is_one_of_the_launchers(deployment):
    variables = {flag.variable for flag in BY_NAME.values()} | {"HF_TOKEN"}
    assert {v["name"] for v in container(deployment)["env"]} <= variables
    assert all(arg[2:].split("=")[0].replace("-", "_") in BY_NAME for arg in container(deployment)["args"])


def test_selectors_find_the_pods():
    labels = documents("deployment.yaml")[0]["spec"]["template"]["metadata"]["labels"]
    assert documents("deployment.yaml")[0]["spec"]["selector"]["matchLabels"] == labels
    for one in documents("service.yaml"):
        selector = one["spec"]["selector"]
        assert selector.get("matchLabels", selector) == labels


def test_the_image_is_the_one_that_make_builds():
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)
    assert container(documents("deployment.yaml")[0])["image"] == f"neuronx-tgi:{version}"


def test_the_volume_is_the_one_that_is_claimed():
    volumes = documents("deployment.yaml")[0]["spec"]["template"]["spec"]["volumes"]
    claims = [v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v]
    assert claims == [documents("models.yaml")[0]["metadata"]["name"]]
