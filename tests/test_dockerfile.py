"""What can be said of the images without building them; hadolint, in ``make lint``, says the rest."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGETS = ("cpu", "neuron")
BUILD_STAGES = ("requirements", "wheel", "ubuntu", "stack-current", "stack-legacy")

#: stage -> what its optimum-neuron is built for, on Ubuntu 22.04 and Python 3.10: apt's packages and pip's.
STACKS = {
    "stack-current": (  # AWS Neuron SDK 2.26.1
        {
            "aws-neuronx-collectives": "2.28.27.0-bc30ece58",
            "aws-neuronx-runtime-lib": "2.28.23.0-dd5879008",
            "aws-neuronx-tools": "2.26.14.0",
        },
        {
            "libneuronxla": "2.2.12677.0",
            "neuronx-cc": "2.21.33363.0",
            "neuronx-distributed": "0.15.22404",
            "optimum-neuron[neuronx]": "0.4.5",
            "torch": "2.8.0",
            "torch-neuronx": "2.8.0.2.10.16998",
            "torchvision": "0.23.0",
        },
    ),
    "stack-legacy": (  # AWS Neuron SDK 2.20.2
        {
            "aws-neuronx-collectives": "2.22.33.0-d2128d1aa",
            "aws-neuronx-runtime-lib": "2.22.19.0-5856c0b42",
            "aws-neuronx-tools": "2.19.0.0",
        },
        {
            "libneuronxla": "2.0.5347.0",
            "neuronx-cc": "2.15.143.0",
            "neuronx-distributed": "0.9.0",
            "optimum-neuron[neuronx]": "0.0.28",
            "torch": "2.1.2",
            "torch-neuronx": "2.1.2.2.3.2",
            "torchvision": "0.16.2",
            "transformers-neuronx": "0.12.313",
        },
    ),
}
#: What the generator imports besides, from wherever it comes.
GENERATOR = {"grpcio", "llguidance", "numpy", "protobuf", "setuptools", "transformers"}
HOSTS = {"download.pytorch.org", "apt.repos.neuron.amazonaws.com", "pip.repos.neuron.amazonaws.com"}


class Stage:
    """One ``FROM`` of the Dockerfile: its base image and its instructions, continuation lines joined."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.instructions: list[tuple[str, str]] = []

    def all(self, keyword: str) -> list[str]:
        return [rest for word, rest in self.instructions if word == keyword]

    def one(self, keyword: str) -> str:
        (rest,) = self.all(keyword)
        return rest

    def env(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for rest in self.all("ENV") for pair in rest.split())

    def installed(self, installer: str, option: str) -> dict[str, str]:
        """What every call of ``installer`` names, package -> version (empty: no version)."""
        words: list[str] = []
        for run in self.all("RUN"):
            for command in run.split("&&"):
                if installer in command:
                    words += command.split(installer, 1)[1].replace("'", "").split()
        packages = [w for i, w in enumerate(words) if not w.startswith(("-", "/", "$", "http", '"'))]
        return {name: version for name, _, version in (p.partition(option) for p in packages)}


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found: dict[str, Stage] = {}
    for line in filter(None, text.splitlines()):
        keyword, rest = line.split(None, 1)
        if keyword == "FROM":
            base, _, name = rest.split()
            stage = found[name] = Stage(base)
        elif found:
            stage.instructions.append((keyword, rest))
    return found


def test_there_are_three_targets_and_neuron_is_the_default_because_it_is_last(stages):
    assert set(stages) == {*BUILD_STAGES, *TARGETS, "sagemaker", "default"}
    assert tuple(stages)[-1] == "default"
    assert stages["default"].base == "neuron"
    assert not stages["default"].instructions


def test_the_sagemaker_image_is_the_neuron_one_as_sagemaker_runs_it(stages):
    stage = stages["sagemaker"]
    assert stage.base == "${SAGEMAKER_BASE}"
    assert "ARG SAGEMAKER_BASE=neuron\n" in (ROOT / "Dockerfile").read_text()
    assert json.loads(stage.one("ENTRYPOINT")) == ["sagemaker-entrypoint"]
    assert stage.env() == {"PORT": "8080", "HUGGINGFACE_HUB_CACHE": "/tmp"}
    assert (stage.one("EXPOSE"), stage.one("USER")) == ("8080", "0")
    assert not stage.all("RUN")


def test_what_the_images_run_are_console_scripts_that_exist(stages):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for target in (*TARGETS, "sagemaker"):
        module, _, function = scripts[json.loads(stages[target].one("ENTRYPOINT"))[0]].partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_the_bases_are_debian_bookworm_and_the_ubuntu_that_aws_packages_for(stages):
    assert stages["cpu"].base == "debian:bookworm-slim"
    assert stages["ubuntu"].base == "ubuntu:22.04"
    assert {stages[stack].base for stack in STACKS} == {"ubuntu"}


def test_an_argument_of_the_build_chooses_between_the_generations_of_neuron_software(stages):
    assert stages["neuron"].base == "stack-${NEURON_STACK}"
    assert "ARG NEURON_STACK=current\n" in (ROOT / "Dockerfile").read_text()
    assert "neuron-stack=$NEURON_STACK" in stages["neuron"].one("LABEL")


def test_the_generator_runs_where_the_packages_of_aws_are_and_finds_our_wheel_there(stages):
    assert stages["neuron"].env()["NEURON_TGI_GENERATOR_PYTHON"] == "/opt/neuron/bin/python"
    assert "/opt/neuron/bin/pip install" in stages["neuron"].all("RUN")[-1]


@pytest.mark.parametrize("target", TARGETS)
def test_the_launcher_is_what_the_image_runs(stages, target):
    assert json.loads(stages[target].one("ENTRYPOINT")) == ["text-generation-launcher"]
    assert not stages[target].all("CMD"), "arguments of docker run go to the launcher alone"
    assert stages[target].one("STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize("target", TARGETS)
def test_port_and_model_cache_are_those_of_the_tgi_images(stages, target):
    env = stages[target].env()
    assert (env["PORT"], env["HUGGINGFACE_HUB_CACHE"], env["PYTHONUNBUFFERED"]) == ("80", "/data", "1")
    assert stages[target].one("EXPOSE") == env["PORT"]
    assert env["PATH"].startswith("/opt/venv/bin:")


@pytest.mark.parametrize("target", TARGETS)
def test_the_labels_name_title_licence_and_the_version_that_make_passes(stages, target):
    labels = stages[target].one("LABEL")
    assert "VERSION=unreleased" in stages[target].all("ARG")
    for key in ("title=", "description=", 'licenses="Apache-2.0"', "version=$VERSION"):
        assert f"org.opencontainers.image.{key}" in labels


def test_the_cpu_image_runs_as_a_user_whom_kubernetes_can_tell_from_root(stages):
    assert stages["cpu"].one("USER") == "1000"


@pytest.mark.parametrize("target", TARGETS)
def test_both_images_have_the_user_and_a_cache_that_group_0_may_write(stages, target):
    stage = stages["ubuntu" if target == "neuron" else target]
    assert "useradd --uid 1000 --gid 0" in stage.all("RUN")[0]
    assert "--group=root --mode=2775 /data" in stage.all("RUN")[0]


@pytest.mark.parametrize("stage", [*BUILD_STAGES, *TARGETS])
def test_every_package_named_in_an_apt_call_has_a_version(stages, stage):
    packages = stages[stage].installed("apt-get install", "=")
    assert packages or stage in ("wheel", "neuron")
    assert [name for name, version in packages.items() if not version] == []


@pytest.mark.parametrize("stage", [*BUILD_STAGES, *TARGETS])
def test_every_package_named_in_a_pip_call_has_an_exact_version(stages, stage):
    packages = stages[stage].installed("pip install", "==")
    ranges = {"setuptools<80"}  # a ceiling: 80 dropped pkg_resources, which optimum-neuron 0.0.28 imports
    inexact = [name for name, version in packages.items() if not re.fullmatch(r"[\d.]+", version)]
    assert set(inexact) <= ranges


@pytest.mark.parametrize("stack", STACKS)
def test_a_stack_is_one_release_of_the_neuron_sdk(stages, stack):
    apt, pip = STACKS[stack]
    assert stages[stack].installed("apt-get install", "=") == apt
    found = stages[stack].installed("pip install", "==")
    assert {name: v for name, v in found.items() if re.split("[<=]", name)[0] not in GENERATOR} == pip


@pytest.mark.parametrize("stack", STACKS)
def test_the_kernel_driver_is_the_hosts(stages, stack):
    assert "aws-neuronx-dkms" not in stages[stack].installed("apt-get install", "=")


@pytest.mark.parametrize("stack", STACKS)
def test_what_the_generator_imports_is_installed_beside_the_packages_of_aws(stages, stack):
    found = {re.split("[<=]", name)[0] for name in stages[stack].installed("pip install", "==")}
    assert GENERATOR - {"setuptools"} <= found


@pytest.mark.parametrize("target", TARGETS)
def test_each_pip_call_is_constrained_or_brings_the_wheel_alone(stages, target):
    for run in stages[target].all("RUN"):
        for command in run.split("&&"):
            if "pip install" in command:
                assert "--constraint" in command or "--no-deps" in command
                assert "--no-cache-dir" in command


@pytest.mark.parametrize("stage", [*BUILD_STAGES, *TARGETS])
def test_apt_lists_go_in_the_layer_that_brought_them(stages, stage):
    for run in stages[stage].all("RUN"):
        if "apt-get update" in run:
            assert "--no-install-recommends" in run
            assert "rm -rf /var/lib/apt/lists/*" in run


def test_nothing_is_added_from_the_network_or_piped_into_a_shell(stages):
    for stage in stages.values():
        assert not stage.all("ADD")
        assert not any(re.search(r"\|\s*(ba|da)?sh\b", run) for run in stage.all("RUN"))


def test_the_only_hosts_are_public_ones_of_aws_and_pytorch():
    hosts = re.findall(r"https?://([^/\s\"\\]+)", (ROOT / "Dockerfile").read_text())
    assert set(hosts) - {"127.0.0.1"} == HOSTS


@pytest.mark.parametrize("name", ["Dockerfile", "Makefile", ".ci/run", "constraints.txt"])
def test_no_secret_no_proxy_and_no_settings_of_one_machine(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"(?i)(token(?!iz)|passw|secret|credential|api_?key|_proxy)", text)
    assert not re.search(r"file://|find-links|pip\.conf|--index-url|trusted-host|/root/", text)


def test_the_images_get_everything_they_copy_and_nothing_else(stages):
    lines = (ROOT / ".dockerignore").read_text().split()
    passed = {line[1:] for line in lines if line.startswith("!")}
    copies = [rest.split() for stage in stages.values() for rest in stage.all("COPY")]
    copied = {source for words in copies if not words[0].startswith("--from") for source in words[:-1]}
    assert "*" in lines
    assert passed == copied
    assert {path for path in copied if not (ROOT / path).exists()} == set()


def test_every_direct_dependency_has_its_version():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {normal(re.match(r"[\w.-]+", spec).group()) for spec in project["dependencies"]}
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.match(r"[\w.-]+==[\w.]+( ;|$)", pin) for pin in pins)
    assert wanted - {normal(pin.split("==")[0]) for pin in pins} == set()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("target", "stack", "suffix"),
    [("neuron", "current", ""), ("neuron", "legacy", "-legacy"), ("cpu", "current", "-cpu")],
)
def test_make_names_the_image_by_the_version_of_pyproject(target, stack, suffix):
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)
    command = subprocess.run(
        ["make", "--dry-run", "neuronx-tgi", f"TARGET={target}", f"NEURON_STACK={stack}", "DOCKER=builder"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},  # nothing of the make that may be running this test
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    builds = f"--build-arg VERSION={version} --build-arg NEURON_STACK={stack}"
    arguments = f"--target {target} {builds} --tag neuronx-tgi:{version}{suffix} ."
    assert command.split() == ["builder", "build", *arguments.split()]


class Health(BaseHTTPRequestHandler):
    """Answers ``/health`` with the status that stands on the server."""

    def do_GET(self) -> None:
        self.send_response(self.server.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_health_check_follows_the_status_of_the_health_route(stages, target, status, healthy):
    words = json.loads(stages[target].one("HEALTHCHECK").split("CMD ", 1)[1])
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        server.status = status
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        if status is None:
            server.socket.close()  # nobody listens
        else:
            thread.start()
        done = subprocess.run(
            [sys.executable, *words[1:]],
            env={"PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:9"},
            capture_output=True,
            timeout=30,
        )
        if status is not None:
            server.shutdown()
            thread.join()
    assert (done.returncode == 0) is healthy, done.stderr
