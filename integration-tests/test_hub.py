"""A hub id from the command line to an answer, and what a user reads when the hub does not give it.

``HF_ENDPOINT`` leads to a hub on localhost; nothing else is reached.
"""

from __future__ import annotations

import re
import signal

import httpx
import pytest
from backends.fake_hub import COMMIT, Hub, serving
from conformance import OWN_EXIT_STATUS
from harness import DEMO_MODEL

MODEL_ID = "org/model"


@pytest.fixture
def hub():
    """The demo model under an id, with a pickle and code beside it that nobody asked for."""
    files = {path.name: path.read_bytes() for path in DEMO_MODEL.iterdir() if path.is_file()}
    return Hub({MODEL_ID: {**files, "pytorch_model.bin": b"pickle", "modeling.py": b"raise SystemExit"}})


@pytest.fixture
def launch_from(launch, hub, tmp_path):
    """Start launchers whose hub is ``hub``, and whose cache is empty at first."""

    def start(*flags: str, **env: str):
        hub_variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
        return launch(
            *("--model-id", MODEL_ID, "--huggingface-hub-cache", str(tmp_path / "cache"), *flags),
            env={**hub_variables, **env},
        )

    with serving(hub) as endpoint:
        yield start


def test_a_hub_id_is_fetched_once_and_served(launch_from, hub, tmp_path):
    server = launch_from().wait_ready()
    info = httpx.get(f"{server.base_url}/info").json()
    assert (info["model_id"], info["model_sha"]) == (MODEL_ID, COMMIT)
    body = {"inputs": "A list is", "parameters": {"max_new_tokens": 2, "details": True}}
    answer = httpx.post(f"{server.base_url}/generate", json=body).json()
    assert answer["details"]["generated_tokens"] == 2
    assert server.stop() == 0
    assert "model.safetensors" in hub.fetched
    assert not {"pytorch_model.bin", "modeling.py"} & set(hub.fetched)
    assert (tmp_path / "cache").is_dir()
    hub.fetched.clear()
    again = launch_from(HF_HUB_OFFLINE="1").wait_ready()
    assert httpx.post(f"{again.base_url}/generate", json=body).json() == answer
    assert hub.fetched == []


def test_a_plan_that_cannot_work_costs_no_download_of_weights(launch_from, hub):
    server = launch_from("--max-total-tokens", "100000")
    assert server.wait_exit() == 15
    assert "config.json" in hub.fetched
    assert "model.safetensors" not in hub.fetched


def cut_short(hub: Hub) -> None:
    files = hub.repositories[MODEL_ID]
    files["model.safetensors"] = files["model.safetensors"][:-1000]


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (lambda hub: hub.repositories.clear(), ["is not on the hub", "HF_TOKEN"]),
        (lambda hub: hub.failures.update({MODEL_ID: (403, "GatedRepo")}), ["is gated", "HF_TOKEN"]),
        (lambda hub: hub.failures.update({MODEL_ID: (500, "")}), ["500"]),
        (lambda hub: hub.repositories[MODEL_ID].pop("model.safetensors"), ["no safetensors", "pickle"]),
        (cut_short, ["model.safetensors", "truncated"]),
    ],
    ids=["unknown", "gated", "failing", "only-pickles", "truncated"],
)
def test_what_the_hub_does_not_give_is_named_and_nothing_starts(launch_from, hub, trouble, words):
    trouble(hub)
    server = launch_from()
    assert server.wait_exit() not in (0, 1, 2)
    for word in words:
        assert word in server.output
    assert "Traceback" not in server.output
    assert "Starting shard" not in server.output


@pytest.mark.case(187, deviation=OWN_EXIT_STATUS)
def test_a_failed_download_ends_with_tgis_last_line_and_the_reason_in_the_log(launch_from, hub):
    hub.failures[MODEL_ID] = (500, "")
    server = launch_from()
    assert server.wait_exit() == 25
    assert server.lines[-1] == "Error: DownloadError"
    assert re.search(
        r"ERROR download: text_generation_launcher: Download encountered an error:", server.output
    )
    assert "the hub answered 500" in server.output


def test_the_hubs_pipeline_tag_is_asked_for_and_its_absence_said(launch_from, hub):
    server = launch_from().wait_ready()
    assert server.stop() == 0
    assert f"no pipeline tag found for model {MODEL_ID}" in server.output
    hub.pipeline_tags[MODEL_ID] = "text-generation"
    server = launch_from().wait_ready()
    assert server.stop() == 0
    assert "no pipeline tag" not in server.output
    assert "Files are already present on the host. Skipping download." in server.output


def test_a_download_is_told_step_by_step_in_its_span(launch_from):
    server = launch_from()
    lines = [
        rf"INFO download: text_generation_launcher: Starting check and download process for {MODEL_ID}$",
        r"INFO download: text_generation_launcher: Download file: model\.safetensors \(\d+\.\d MB\)",
        r"INFO download: text_generation_launcher: Downloaded .*/model\.safetensors in 0:00:\d\d\.",
        r"INFO download: text_generation_launcher: Download: \[1/1\] -- ETA: 0:00:00",
        rf"INFO download: text_generation_launcher: Successfully downloaded weights for {MODEL_ID}",
    ]
    for line in lines:
        server.wait_for_line(line)
    assert server.stop() == 0


def test_a_signal_during_a_download_is_an_orderly_end_and_the_next_start_resumes(launch_from, hub):
    hub.stall = True
    server = launch_from()
    assert hub.stalled.wait(60)
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert "Terminating download" in server.output
    assert "Starting shard" not in server.output
    hub.stall = False
    hub.go_on.set()
    launch_from().wait_ready()
