"""Group 20: each mismatch has its own text. The versions and rules are those of optimum-neuron's releases."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import pytest
from planning import facts

from launcher.device.cores import CoreRange
from launcher.device.inventory import Inventory
from launcher.device.stack import Stack
from launcher.exit_codes import EXIT_CODES
from launcher.neuron_checks import check_loadable, export_command, mismatches, notes, target_of
from launcher.server import parse_export
from neuron_server.errors import ModelError
from neuron_server.models import ModelFacts, StaticFacts

pytestmark = pytest.mark.group(20)

CC = "2.21.33363.0+82129205"
NXD = StaticFacts(
    batch_size=4, sequence_length=4096, max_context_length=2048, generation="nxd", continuous_batching=True,
    cores=2, dtype="bfloat16", optimum_version="0.4.5", compiler_version=CC, target="trn1",
    on_device_sampling=True, checkpoint_id="org/model", checkpoint_revision="abc", tensor_parallel=2,
)  # fmt: skip
LEGACY = StaticFacts(
    batch_size=4, sequence_length=2048, max_context_length=2048, generation="legacy",
    continuous_batching=False, cores=2, dtype="float16", compiler_version="2.15.143.0+e39249ad",
    tensor_parallel=2,
)  # fmt: skip
NOW = Stack(optimum_neuron="0.4.5", compiler=CC)
THEN = Stack(optimum_neuron="0.0.28", compiler="2.15.143.0+e39249ad")
INF2 = Inventory(devices=1, instance_type="inf2.8xlarge", cores=CoreRange(0, 2))


def nxd(model_type: str = "llama", **changes: Any) -> ModelFacts:
    return facts(model_type=model_type, static=dataclasses.replace(NXD, **changes))


def legacy(model_type: str = "gpt2", **changes: Any) -> ModelFacts:
    return facts(model_type=model_type, static=dataclasses.replace(LEGACY, **changes))


def refused(model: ModelFacts, stack: Stack = NOW, inventory: Inventory = INF2) -> tuple[str, str]:
    with pytest.raises(ModelError) as caught:
        check_loadable(model, stack, inventory)
    assert caught.value.rule in EXIT_CODES
    return caught.value.rule, str(caught.value)


def test_what_fits_passes():
    check_loadable(nxd(), NOW, INF2)
    check_loadable(legacy(), THEN, INF2)
    check_loadable(facts(), Stack(), Inventory())  # a plain model is nobody's business here


def test_what_is_not_known_is_not_held_against_a_model():
    unsaid = nxd(optimum_version=None, compiler_version=None, target=None, cores=None)
    check_loadable(unsaid, NOW, INF2)
    check_loadable(nxd(), Stack(optimum_neuron="0.4.5"), Inventory())
    check_loadable(nxd(target=None), NOW, INF2)  # what 0.3 writes


def test_without_optimum_neuron_the_image_is_named():
    rule, text = refused(nxd(), Stack())
    assert rule == "backend_unavailable"
    assert "optimum-neuron is not installed" in text
    assert "NEURON_STACK=legacy" in refused(legacy(), Stack())[1]


@pytest.mark.parametrize(
    ("compiled", "installed"), [("0.4.4", "0.4.5"), ("0.4.5", "0.4.4"), ("0.3.0", "0.4.5")]
)
def test_optimum_neuron_must_be_the_very_same(compiled, installed):
    rule, text = refused(nxd(optimum_version=compiled), Stack(optimum_neuron=installed, compiler=CC))
    assert rule == "neuron_version"
    assert f"optimum-neuron {compiled}, and {installed} is installed" in text
    assert "text-generation-server export org/model" in text


@pytest.mark.parametrize(
    ("compiled", "installed", "same"),
    [
        (CC, CC, True),
        (CC, "2.21.33363.0+00000000", False),
        (CC, "2.21.33363.0", True),  # some package indexes drop the build
        (CC, "2.21.18209.0+82129205", False),
    ],
)
def test_the_compiler_of_an_nxd_model_must_be_the_same_build(compiled, installed, same):
    stack = Stack(optimum_neuron="0.4.5", compiler=installed)
    if same:
        check_loadable(nxd(compiler_version=compiled), stack, INF2)
    else:
        rule, text = refused(nxd(compiler_version=compiled), stack)
        assert rule == "neuron_version"
        assert compiled in text
        assert installed in text


def test_a_legacy_model_may_be_older_than_the_compiler_but_not_newer():
    check_loadable(legacy(compiler_version="2.9.0.40+07376825f"), THEN, INF2)
    rule, text = refused(legacy(compiler_version="2.16.372.0+4a9b2326"), THEN)
    assert rule == "neuron_version"
    assert "2.16.372.0" in text


@pytest.mark.parametrize("installed", ["0.4.5", "0.3.0", "0.4.6.dev4"])
def test_a_new_stack_loads_no_legacy_model(installed):
    rule, text = refused(legacy("llama"), Stack(optimum_neuron=installed, compiler=CC))
    assert rule == "neuron_version"
    assert "NEURON_STACK=legacy" in text


@pytest.mark.parametrize("installed", ["0.0.28", "0.1.0"])
def test_an_old_stack_loads_no_nxd_model(installed):
    rule, text = refused(nxd(), Stack(optimum_neuron=installed, compiler=CC))
    assert rule == "neuron_version"
    assert "0.4.5" in text


def test_the_hlo_backend_has_no_heir():
    rule, text = refused(nxd(hlo=True, optimum_version="0.2.0"))
    assert rule == "neuron_version"
    assert "HLO" in text


@pytest.mark.parametrize("family", ["mistral", "gpt2", "opt", "bloom"])
def test_a_family_that_left_is_sent_to_the_old_image(family):
    rule, text = refused(nxd(family))
    assert rule == "unsupported_model"
    assert "0.1.0" in text
    assert "NEURON_STACK=legacy" in text
    check_loadable(legacy(family), THEN, INF2)


def test_a_family_that_came_later_is_sent_to_the_new_image():
    rule, text = refused(legacy("smollm3"), THEN)
    assert rule == "unsupported_model"
    assert "0.4.0" in text
    assert refused(legacy("phi3"), THEN)[0] == "unsupported_model"
    check_loadable(nxd("smollm3"), NOW, INF2)


def test_a_family_that_never_was_there_is_told_which_are():
    rule, text = refused(nxd("falcon"))
    assert rule == "unsupported_model"
    assert "llama" in text
    assert "gpt2" not in text
    unknown = nxd("falcon", optimum_version="0.9.0")
    check_loadable(unknown, Stack(optimum_neuron="0.9.0", compiler=CC), INF2)  # of the future nothing is said


@pytest.mark.parametrize("here", ["inf2.xlarge", "trn1.32xlarge", "trn1n.32xlarge"])
@pytest.mark.parametrize("target", ["trn1", "inf2", "trn1n", None])
def test_inf2_and_trn1_are_one_target(here, target):
    check_loadable(nxd(target=target), NOW, dataclasses.replace(INF2, instance_type=here))


def test_another_kind_of_device_is_named():
    rule, text = refused(nxd(target="trn2"))
    assert rule == "neuron_target"
    assert "compiled for trn2, and this is inf2.8xlarge" in text
    assert "--instance-type inf2" in text
    trn2 = dataclasses.replace(INF2, instance_type="trn2.48xlarge")
    assert "compiled for inf2 or trn1" in refused(nxd(), inventory=trn2)[1]


def test_more_cores_than_there_are_name_both_numbers():
    rule, text = refused(nxd(cores=8, tensor_parallel=8))
    assert rule == "neuron_cores"
    assert "8 NeuronCores, and 2 can be used here (cores 0-1)" in text
    assert "--tensor-parallel-size 2" in text


def test_everything_wrong_is_told_at_once_to_who_asks():
    model = nxd("mistral", optimum_version="0.4.0", target="trn2", cores=32)
    rules = [error.rule for error in mismatches(model, NOW, INF2)]
    assert rules == ["unsupported_model", "neuron_version", "neuron_target", "neuron_cores"]


def test_the_command_line_to_paste_is_one_that_the_verb_takes():
    line = export_command(NXD)
    parsed = parse_export(shlex.split(line)[2:])
    assert (parsed.model_id, parsed.revision, parsed.batch_size) == ("org/model", "abc", 4)
    assert (parsed.sequence_length, parsed.max_context_length) == (4096, 2048)
    assert (parsed.tensor_parallel_size, parsed.dtype, parsed.on_device_sampling) == (2, "bfloat16", True)
    parsed = parse_export(shlex.split(export_command(LEGACY, "./a model"))[2:])
    assert (parsed.model_id, parsed.revision, parsed.on_device_sampling) == ("./a model", None, None)


def test_odd_things_are_noted_once_each():
    assert notes(NXD) == ()
    (note,) = notes(dataclasses.replace(NXD, unknown=("a", "b")))
    assert "a, b" in note
    assert len(notes(dataclasses.replace(NXD, optimum_version=None, unknown=tuple("abcdefghijk")))) == 2


def test_targets_of_instances():
    assert target_of("inf2.48xlarge") == target_of("trn1.2xlarge") == "trn1"
    assert (target_of("trn2.48xlarge"), target_of("m5.large"), target_of(None)) == ("trn2", None, None)


def test_what_no_backend_runs_is_known_before_a_generator_starts():
    rule, message = refused(nxd(obstacles=("speculation_length 4, which is not served: a reason",)))
    assert rule == "unsupported_model"
    assert "speculation_length 4" in message
