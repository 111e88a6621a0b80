"""Which model is served on Neuron: the launcher with the real programs and a stand-in of optimum-neuron."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from neuron_world import COMPILER, NeuronWorld, entry, neuron_world, plain_model

from launcher.child import Forward
from launcher.device import inventory
from launcher.device.stack import installed
from launcher.export_program import Runner
from launcher.neuron_model import Launch, neuron_model
from launcher.parameters import Parameters
from launcher.plan import Model
from launcher.stopping import Stopping
from neuron_server.errors import ConfigError, ModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture
def machine(tmp_path: Path) -> NeuronWorld:
    return neuron_world(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return plain_model(tmp_path / "model")


def launch(
    machine: NeuronWorld, values: dict[str, Any] | None = None, *, forward: Forward | None = None, **env: str
) -> Launch:
    environ = {"PATH": os.environ["PATH"], **machine.env, **env}
    runner = Runner(environ, forward or (lambda name, line: None), Stopping())
    found = inventory.inspect(machine.root, environ)
    return Launch(Parameters.of(**(values or {})), runner, installed(machine.root, environ), found)


def in_hub_cache(machine: NeuronWorld, name: str, commit: str, source: Path) -> Path:
    """As if the hub client had fetched ``source`` as ``name``."""
    repository = machine.hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    return Path(shutil.copytree(source, repository / "snapshots" / commit))


def drafts() -> tuple[list[Model], Any]:
    seen: list[Model] = []
    return seen, seen.append


async def test_a_plain_model_is_compiled_as_the_cache_has_it_and_found_at_once_the_next_time(
    machine, model, heard
):
    entries = json.dumps([entry(32), entry(4), entry(4, 1024)])
    seen, draft = drafts()
    wanted = {"max_batch_size": 4, "max_total_tokens": 2048}
    found = await neuron_model(launch(machine, wanted, FAKE_ENTRIES=entries), str(model), draft)
    assert found is not None
    static = found.facts.static
    assert static is not None
    assert (static.batch_size, static.sequence_length, static.tensor_parallel) == (4, 2048, 2)
    assert found.model_id == str(model)
    assert Path(found.path).is_relative_to(machine.hub)
    assert (Path(found.path) / "checkpoint").resolve() == model
    assert found.weight_bytes == (model / "model.safetensors").stat().st_size
    assert [m.facts.static and m.facts.static.batch_size for m in seen] == [4, 4]
    assert "Chosen from the compile cache: batch size 4, sequence length 2048" in heard.text
    assert [set(asked) & {"entries_of", "export_of"} for asked in machine.asked] == [
        {"entries_of"},
        {"export_of"},
    ]
    # Again, with the cache out of reach: nothing is asked or compiled.
    again = await neuron_model(launch(machine, wanted, FAKE_CACHE="offline"), str(model), draft)
    assert again is not None
    assert again.path == found.path
    assert len(machine.asked) == 2
    # Other flags, no network: what was compiled before is good enough where it is what they ask for.
    other = await neuron_model(
        launch(machine, {"max_batch_size": 4}, FAKE_CACHE="offline"), str(model), draft
    )
    assert other is not None
    assert other.path == found.path
    with pytest.raises(ModelError, match="could not be asked"):
        await neuron_model(launch(machine, {"max_batch_size": 8}, FAKE_CACHE="offline"), str(model), draft)


async def test_a_damaged_one_is_compiled_again_and_a_changed_model_is_another(machine, model, heard):
    start = launch(machine, FAKE_ENTRIES=json.dumps([entry(4)]))
    found = await neuron_model(start, str(model), drafts()[1])
    assert found is not None
    (Path(found.path) / "model.pt").write_bytes(b"cut")
    again = await neuron_model(start, str(model), drafts()[1])
    assert again is not None
    assert (again.path, zipfile.is_zipfile(Path(again.path) / "model.pt")) == (found.path, True)
    assert "is damaged" in heard.text
    os.utime(model / "model.safetensors", (1, 1))
    changed = await neuron_model(start, str(model), drafts()[1])
    assert changed is not None
    assert changed.path != found.path


async def test_the_alternatives_are_told(machine, model, heard):
    entries = json.dumps([entry(4), entry(1), {"batch_size": "broken"}, entry(32, cores=8)])
    found = await neuron_model(launch(machine, FAKE_ENTRIES=entries), str(model), drafts()[1])
    assert found is not None
    assert "1 more would do as well" in heard.text
    assert "batch size 1, sequence length 2048, tensor parallel 2" in heard.text
    assert "entry 2 of the compile cache" in heard.text
    assert "batch size 32" not in heard.text  # it needs 8 cores, and here are 2


async def test_no_entry_that_fits_costs_no_compile(machine, model):
    with pytest.raises(ModelError) as caught:
        await neuron_model(
            launch(machine, {"max_batch_size": 4}, FAKE_ENTRIES=json.dumps([entry(32)])),
            str(model),
            drafts()[1],
        )
    assert caught.value.rule == "no_cached_config"
    assert "batch size 32" in str(caught.value)
    assert f"text-generation-server export {model}" in str(caught.value)
    assert not machine.hub.exists()


async def test_a_failed_compile_and_a_killed_one_have_their_rule_and_leave_nothing(machine, model):
    for how, words in (("fail", "the tensorizer gave up"), ("killed", "SIGKILL")):
        start = launch(machine, FAKE_ENTRIES=json.dumps([entry(4)]), FAKE_EXPORT=how)
        with pytest.raises(ModelError, match=words) as caught:
            await neuron_model(start, str(model), drafts()[1])
        assert caught.value.rule == "export_failed"
        assert not list(machine.hub.rglob("model.pt"))


async def test_a_flag_that_is_wrong_anyway_costs_no_look_at_the_cache(machine, model):
    with pytest.raises(ConfigError) as caught:
        await neuron_model(launch(machine, {"max_total_tokens": 100_000}), str(model), drafts()[1])
    assert caught.value.rule == "max_positions"
    assert machine.asked == []


async def test_a_family_without_graphs_is_refused_before_the_cache_is_asked(machine, tmp_path):
    model = plain_model(tmp_path / "mistral", model_type="mistral")
    with pytest.raises(ModelError, match=r"NEURON_STACK=legacy") as caught:
        await neuron_model(launch(machine), str(model), drafts()[1])
    assert caught.value.rule == "unsupported_model"
    assert machine.asked == []


async def test_whoever_stops_it_gets_no_model(machine, model):
    start = launch(machine, FAKE_ENTRIES=json.dumps([entry(4)]))
    start.runner.stopping.requested.set()
    assert await neuron_model(start, str(model), drafts()[1]) is None


# -- models of the hub ---------------------------------------------------------------------------------------


async def test_a_plain_hub_model_is_compiled_once_for_each_commit(machine, model):
    snapshot = in_hub_cache(machine, "org/model", COMMIT, model)
    start = launch(machine, FAKE_ENTRIES=json.dumps([entry(4, on_device_sampling=False)]))
    found = await neuron_model(start, "org/model", drafts()[1])
    assert found is not None
    static = found.facts.static
    assert static is not None
    assert (found.model_id, found.revision, static.on_device_sampling) == ("org/model", COMMIT, False)
    assert (static.checkpoint_id, static.checkpoint_revision) == ("org/model", COMMIT)
    assert (Path(found.path) / "checkpoint").resolve() == snapshot
    assert machine.asked[0]["entries_of"] == str(snapshot)  # the very revision, without asking the hub


def compiled_model(path: Path, **values: Any) -> Path:
    """A compiled model without weights, as the hub has them."""
    plain_model(path)
    (path / "model.safetensors").unlink()
    about = entry(4, checkpoint_id="org/base", checkpoint_revision=OTHER, **values)
    (path / "neuron_config.json").write_text(json.dumps(about))
    with zipfile.ZipFile(path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", b"graphs")
    return path


async def test_a_compiled_model_takes_its_weights_from_where_it_says(machine, model, tmp_path, heard):
    compiled = compiled_model(tmp_path / "compiled", a_key_of_the_future=1)
    base = in_hub_cache(machine, "org/base", OTHER, model)
    found = await neuron_model(launch(machine), str(compiled), drafts()[1])
    assert found is not None
    path = Path(found.path)
    assert (path / "checkpoint").resolve() == base
    assert (path / "model.pt").samefile(compiled / "model.pt")
    assert found.weight_bytes
    assert "a_key_of_the_future" in heard.text
    again = await neuron_model(launch(machine), str(compiled), drafts()[1])
    assert again is not None
    assert again.path == found.path


async def test_mismatches_are_found_before_weights_are_asked_for(machine, tmp_path):
    for changes, rule in (
        ({"optimum_neuron_version": "0.4.4"}, "neuron_version"),
        ({"neuronxcc_version": COMPILER + "0"}, "neuron_version"),
        ({"target": "trn2"}, "neuron_target"),
        ({"tp_degree": 8}, "neuron_cores"),
    ):
        compiled = compiled_model(tmp_path / rule / str(len(changes)) / str(changes), **changes)
        with pytest.raises(ModelError) as caught:
            await neuron_model(launch(machine), str(compiled), drafts()[1])
        assert caught.value.rule == rule


async def test_a_driver_that_does_not_go_with_the_runtime_is_told_first(machine, tmp_path):
    (machine.root / "sys/module/neuron/version").write_text("2.29.1.0\n")
    library = machine.root / "opt/aws/neuron/lib"
    library.mkdir(parents=True)
    (library / "libnrt.so.2.28.23.0").write_text("")
    with pytest.raises(ConfigError) as caught:
        await neuron_model(launch(machine), str(compiled_model(tmp_path / "compiled")), drafts()[1])
    assert caught.value.rule == "neuron_driver"


async def test_a_compiled_model_without_its_graphs_is_told_what_is_missing(machine, tmp_path):
    compiled = compiled_model(tmp_path / "compiled")
    shutil.copy(plain_model(tmp_path / "plain") / "model.safetensors", compiled)
    (compiled / "model.pt").unlink()
    with pytest.raises(ModelError, match=r"model\.pt") as caught:
        await neuron_model(launch(machine), str(compiled), drafts()[1])
    assert caught.value.rule == "weights_missing"
