from __future__ import annotations

import pytest
from planning import compiled, facts, machine, planned

from launcher.device.cores import CoreRange
from launcher.device.inventory import Inventory
from launcher.host import Host
from launcher.parameters import Parameters, Source, Value
from launcher.plan import check_arguments
from neuron_server.errors import ConfigError, ModelError
from neuron_server.models import ModelFacts


def refused(model: ModelFacts | None = None, *, host: Host | None = None, **values: Value) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        planned(model, host=host or machine(), **values)
    return caught.value.rule, str(caught.value)


def chosen(model: ModelFacts, **values: Value):
    return planned(model, host=machine(), **values).generators[0]


# -- which one -----------------------------------------------------------------------------------------------


def test_auto_is_neuron_where_a_device_is_and_the_generation_picks_the_adapter():
    assert chosen(compiled()).backend == "neuron"
    assert chosen(compiled(generation="legacy")).backend == "neuron_legacy"
    assert chosen(compiled(generation="legacy"), backend="neuron").backend == "neuron_legacy"
    assert chosen(compiled(generation="legacy"), backend="neuron_legacy").backend == "neuron_legacy"


def test_a_compiled_model_is_served_on_the_cpu_where_that_was_asked_for():
    assert chosen(compiled(cores=8), backend="cpu").backend == "cpu"
    assert planned(compiled(cores=8)).generators[0].backend == "cpu"


def test_the_legacy_adapter_refuses_a_model_of_the_new_generation():
    rule, text = refused(compiled(), backend="neuron_legacy")
    assert rule == "backend_unavailable"
    assert "--backend is neuron_legacy (flag)" in text
    assert "optimum-neuron 0.2 or later" in text


@pytest.mark.parametrize("backend", ["neuron", "neuron_legacy"])
def test_without_a_device_the_way_to_one_and_the_way_without_are_named(backend):
    rule, text = refused(compiled(), host=Host(), backend=backend)
    assert rule == "no_neuron_device"
    assert f"--backend is {backend} (flag), but no Neuron device can be seen" in text
    assert "driver" in text
    assert text.count("--backend cpu") == 1
    rule, text = refused(compiled(), host=Host(inventory=Inventory(driver_loaded=True)), backend=backend)
    assert "--device=/dev/neuron0" in text
    assert text.count("--backend cpu") == 1


def test_a_device_is_missed_before_the_model_is_known():
    with pytest.raises(ConfigError) as caught:
        check_arguments(Parameters.of(backend="neuron"), Host())
    assert caught.value.rule == "no_neuron_device"
    assert check_arguments(Parameters.of(), machine()) == "neuron"
    assert check_arguments(Parameters.of(), Host()) == "cpu"


def test_variables_of_the_runtime_that_are_wrong_are_told_before_the_model_is_known():
    wrong = Host(inventory=Inventory(devices=1, cores_problem="NEURON_RT_VISIBLE_CORES is 'x', but ..."))
    with pytest.raises(ConfigError, match="NEURON_RT_VISIBLE_CORES is 'x'") as caught:
        check_arguments(Parameters.of(), wrong)
    assert caught.value.rule == "neuron_cores"
    assert check_arguments(Parameters.of(backend="cpu"), wrong) == "cpu"


@pytest.mark.parametrize("backend", ["auto", "neuron"])
def test_a_plain_model_is_none_for_neuron(backend):
    rule, text = refused(facts(), backend=backend)
    assert rule == "not_a_neuron_model"
    assert f"--backend is {backend}" in text
    assert "export" in text
    assert "--backend cpu" in text


@pytest.mark.parametrize(
    "values",
    [{"strict": True}, {"poison": True}, {"on_device_sampling": True}, {"simulated_clock": "0.1:1=0.1"}],
)
def test_the_emulation_of_a_device_is_refused_on_one(values):
    rule, text = refused(compiled(), **values)
    assert rule == "emulation"
    (name,) = values
    assert f"--{name.replace('_', '-')} is" in text
    assert planned(compiled(), host=machine(), backend="cpu", **values).generators


# -- tensor parallel -----------------------------------------------------------------------------------------


def test_the_tensor_parallel_degree_is_the_model_s():
    for values in ({}, {"num_shard": 8}, {"sharded": "true"}, {"sharded": "true", "num_shard": 8}):
        plan = planned(compiled(cores=8), host=machine(), **values)
        assert plan.environments[0]["NEURON_RT_VISIBLE_CORES"] == "0-7"


def test_tgis_rule_that_a_number_wins_over_false():
    plan = planned(compiled(cores=8), host=machine(), sharded="false", num_shard=8)
    assert plan.environments[0]["NEURON_RT_VISIBLE_CORES"] == "0-7"


@pytest.mark.parametrize("num_shard", [1, 2, 16])
def test_another_degree_is_refused_with_both(num_shard):
    rule, text = refused(compiled(cores=8), num_shard=num_shard)
    assert rule == "num_shard"
    given = f"--num-shard is {num_shard} (flag)"
    assert text == f"{given}, but the model was compiled for 8 cores: set it to 8, or leave it out"


@pytest.mark.parametrize(("cores", "sharded"), [(8, "false"), (1, "true")])
def test_sharded_that_contradicts_the_model_is_refused(cores, sharded):
    rule, text = refused(compiled(cores=cores), sharded=sharded)
    assert rule == "num_shard"
    assert f"--sharded is {sharded} (flag)" in text
    assert f"compiled for {cores} core" in text


def test_a_model_that_does_not_say_takes_the_flag():
    assert planned(compiled(), host=machine(), num_shard=4).environments[0] == {
        "NEURON_RT_VISIBLE_CORES": "0-3"
    }
    assert planned(compiled(), host=machine()).environments[0] == {"NEURON_RT_VISIBLE_CORES": "0"}


def test_tgis_own_checks_come_first_on_neuron_too():
    assert refused(compiled(cores=2), num_shard=0) == ("argument", "`num_shard` cannot be < 1")
    assert refused(compiled(cores=2), sharded="true", num_shard=1)[0] == "argument"


def test_a_degree_that_the_devices_do_not_have_is_warned_of():
    plan = planned(compiled(cores=3), host=machine())
    assert any("--num-shard is 3" in warning for warning in plan.warnings)
    assert not any("--num-shard" in w for w in planned(compiled(cores=4), host=machine()).warnings)


# -- type and prefill ----------------------------------------------------------------------------------------


def test_the_type_is_the_model_s_and_another_is_refused_with_both():
    assert chosen(compiled(dtype="bfloat16")).dtype == "bfloat16"
    assert chosen(compiled(dtype="bfloat16"), dtype="bfloat16").dtype == "bfloat16"
    assert chosen(compiled()).dtype == "float32"  # of the checkpoint
    rule, text = refused(compiled(dtype="bfloat16"), dtype="float16")
    assert rule == "argument"
    assert "--dtype is float16 (flag), but the model was compiled for bfloat16" in text


def test_a_type_that_we_do_not_know_is_refused():
    with pytest.raises(ModelError, match="int8") as caught:
        chosen(compiled(dtype="int8"))
    assert caught.value.rule == "unsupported_model"


@pytest.mark.parametrize(
    ("continuous", "mode", "other"), [(True, "insert", "rebuild"), (False, "rebuild", "insert")]
)
def test_the_prefill_mode_is_the_model_s_and_the_other_is_refused(continuous, mode, other):
    model = compiled(continuous_batching=continuous)
    assert chosen(model).prefill_mode == mode
    assert chosen(model, prefill_mode=mode).prefill_mode == mode
    rule, text = refused(model, prefill_mode=other)
    assert rule == "argument"
    assert f"--prefill-mode is {other} (flag)" in text
    assert f"set it to {mode}" in text


def test_the_shape_is_the_model_s_as_on_the_cpu():
    assert refused(compiled(4, 1024), max_batch_size=8)[0] == "batch_size"
    plan = planned(compiled(4, 1024, context=512), host=machine())
    assert (plan.shape.batch_size, plan.shape.max_length) == (4, 1024)
    assert plan.generators[0].max_prompt_tokens == 512


def test_the_source_of_a_repeated_degree_is_the_flag():
    plan = planned(compiled(cores=2), host=machine(cores=CoreRange(4, 4)), num_shard=2, data_parallel_size=2)
    rows = {row.name: (row.value, row.source) for row in plan.rows}
    assert rows["num_shard"] == ("2", Source.FLAG)
    assert rows["cores of replica 1"] == ("6-7", Source.DERIVED)
