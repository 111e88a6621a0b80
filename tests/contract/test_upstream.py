"""Groups 20, 25 and 26 against the installed upstream release, where a subject runs one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from contract.subject import Subject, Wanted

from neuron_server.models import read_model
from neuron_server.shape import StaticShape


@pytest.mark.group(25)
@pytest.mark.only(once=True)
def test_all_that_our_adapter_uses_exists_in_the_installed_release(subject: Subject) -> None:
    assert subject.drift is not None
    assert list(subject.drift()) == []


@pytest.mark.group(26)
@pytest.mark.only(once=True)
def test_the_stand_ins_fill_exactly_the_recorded_names(subject: Subject) -> None:
    assert subject.placeholders is not None
    used, recorded = (set(names) for names in subject.placeholders())
    assert used
    assert sorted(used - recorded) == []
    assert sorted(recorded - used) == []


@pytest.mark.group(20)
@pytest.mark.only(once=True, needs="written_config")
@pytest.mark.parametrize("output", ["logits", "tokens"])
def test_what_the_installed_release_writes_is_read_with_the_same_values(
    subject: Subject, output: str, tmp_path: Path
) -> None:
    assert subject.written_config is not None
    wanted = Wanted(StaticShape(4, 48), 24, output=output)
    written = dict(subject.written_config(wanted))
    config = {"model_type": "llama", "vocab_size": 64, "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "neuron_config.json").write_text(json.dumps(written))
    static = read_model(tmp_path).static
    assert static is not None
    assert static.unknown == ()
    assert (static.batch_size, static.sequence_length, static.max_context_length) == (4, 48, 24)
    assert (static.generation, static.continuous_batching) == ("nxd", True)
    assert static.on_device_sampling == (output == "tokens")
    assert static.optimum_version == written["optimum_neuron_version"]
    assert static.compiler_version == written["neuronxcc_version"]
    assert static.target == written["target"]
