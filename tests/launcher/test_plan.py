from __future__ import annotations

import dataclasses

import pytest
from planning import compiled, facts, machine, planned

from launcher.device.inventory import Inventory
from launcher.host import Host
from launcher.parameters import Parameters, Source, Value
from launcher.plan import Model, Row, plan
from neuron_server.errors import ConfigError, ModelError
from neuron_server.models import ModelFacts


def refused(model: ModelFacts | None = None, *, host: Host | None = None, **values: Value) -> tuple[str, str]:
    """The rule and the text of the refusal."""
    with pytest.raises(ConfigError) as caught:
        planned(model, host=host, **values)
    return caught.value.rule, str(caught.value)


def test_both_configs_agree_on_the_shape_and_the_socket():
    plan = planned(max_batch_size=3, max_total_tokens=100, max_input_tokens=40, port=8080, max_best_of=5)
    (generator,) = plan.generators
    assert (generator.batch_size, generator.max_length, generator.max_prompt_tokens) == (3, 100, 40)
    assert (plan.router.batch_size, plan.router.max_total_tokens, plan.router.max_input_tokens) == (
        3,
        100,
        40,
    )
    assert plan.router.shard_uds_paths == (generator.uds_path,)
    assert (plan.router.port, plan.router.max_best_of) == (8080, 5)
    assert (plan.router.model_id, plan.router.tokenizer_path) == ("org/model", generator.model_path)


@pytest.mark.case(185)
def test_the_old_name_of_the_prompt_limit_makes_the_same_plan():
    old, new = planned(max_input_length=10), planned(max_input_tokens=10)
    assert (old.router, old.generators, old.rows) == (new.router, new.generators, new.rows)
    assert old.router.max_input_tokens == 10


def test_a_plan_is_frozen_and_the_same_for_the_same_input():
    assert planned() == planned()
    with pytest.raises(dataclasses.FrozenInstanceError):
        planned().max_restarts = 4  # type: ignore[misc]


def test_emulation_flags_reach_the_generator():
    (generator,) = planned(
        strict=True,
        poison=True,
        simulated_clock="0.3:1=0.02,4=0.04",
        prefill_mode="rebuild",
        dtype="bfloat16",
    ).generators
    assert generator.strict
    assert generator.poison
    assert generator.simulated_clock == "0.3:1=0.02,4=0.04"
    assert (generator.prefill_mode, generator.dtype) == ("rebuild", "bfloat16")


def test_the_width_of_a_compiled_prefill_graph_reaches_the_generator():
    plan = planned(compiled(4, 1024, context=512), max_input_tokens=100)
    assert plan.generators[0].max_prompt_tokens == 512
    assert plan.router.max_input_tokens == 100


# -- the table -----------------------------------------------------------------------------------------------


def test_the_table_names_value_and_source():
    plan = planned(compiled(4, 1024), max_input_tokens=100, port=80)
    rows = {row.name: row for row in plan.rows}
    assert rows["max_batch_size"] == Row("max_batch_size", "4", Source.MODEL)
    assert rows["max_total_tokens"] == Row("max_total_tokens", "1024", Source.MODEL)
    assert rows["max_input_tokens"] == Row("max_input_tokens", "100", Source.FLAG)
    assert rows["max_batch_prefill_tokens"] == Row("max_batch_prefill_tokens", "400", Source.DERIVED)
    assert rows["max_waiting_tokens"] == Row("max_waiting_tokens", "20", Source.DEFAULT)
    assert rows["backend"] == Row("backend", "cpu", Source.DERIVED)


def test_the_table_shows_what_came_from_the_environment_and_the_new_name():
    plan = planned(source=Source.ENVIRONMENT, max_input_length=100)
    assert Row("max_input_tokens", "100", Source.ENVIRONMENT) in plan.rows


def test_the_table_accounts_for_memory():
    # 2 (k, v) x 2 layers x 4 slots x 2 heads x 1024 tokens x 8 x 4 bytes = 1 MiB
    plan = planned(max_total_tokens=1024, weight_bytes=2048, host=Host(available_bytes=2**30))
    rows = {row.name: row.value for row in plan.rows}
    assert (rows["KV cache"], rows["weights in memory"]) == ("1.0 MiB", "2.0 KiB")
    assert rows["memory available"] == "1.0 GiB"


def test_the_table_is_one_aligned_line_per_row():
    lines = planned().table().splitlines()
    assert len(lines) == len(planned().rows)
    assert len({line.index("default") for line in lines if line.endswith("default")}) == 1


# -- rules that are not of the shape -------------------------------------------------------------------------


def test_a_plan_that_does_not_fit_the_memory_is_refused_with_the_account():
    host = Host(available_bytes=2**20)
    assert planned(max_total_tokens=1024, host=host, weight_bytes=0).rows
    rule, text = refused(max_total_tokens=1024, host=host)
    assert rule == "memory"
    for part in ("--max-batch-size 4", "--max-total-tokens 1024", "--dtype float32", "1.0 MiB", "bfloat16"):
        assert part in text


def test_a_narrower_dtype_halves_the_need():
    host = Host(available_bytes=2**20)
    assert planned(max_total_tokens=1024, host=host, dtype="bfloat16").rows


def test_unknown_memory_or_sizes_refuse_nothing():
    unknown = dataclasses.replace(facts(), num_layers=None)
    plan = planned(unknown, host=Host(available_bytes=2000))
    assert Row("KV cache", "unknown", Source.DERIVED) in plan.rows


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"num_shard": 0}, "`num_shard` cannot be < 1"),
        ({"sharded": "true", "num_shard": 1}, "`sharded` is true but `num_shard` <= 1"),
        ({"validation_workers": 0}, "`validation_workers` must be > 0"),
    ],
)
def test_tgis_argument_checks(values, text):
    assert refused(**values) == ("argument", text)


@pytest.mark.parametrize(
    "values", [{"num_shard": 2}, {"sharded": "true"}, {"sharded": "true", "num_shard": 2}]
)
@pytest.mark.parametrize("backend", ["auto", "cpu", "fake"])
def test_more_than_one_core_is_refused_where_there_are_none(values, backend):
    rule, text = refused(**values, backend=backend)
    assert rule == "num_shard"
    assert "no NeuronCores to split the model over" in text
    assert "--data-parallel-size" in text


@pytest.mark.parametrize(
    "values", [{"num_shard": 1}, {"sharded": "false"}, {"sharded": "false", "num_shard": 1}]
)
def test_one_shard_is_what_there_is(values):
    assert len(planned(**values).generators) == 1


def test_a_quantized_model_is_refused_by_flag_and_by_config():
    assert refused(quantize="awq")[0] == "refused_flag"
    with pytest.raises(ModelError) as caught:
        planned(dataclasses.replace(facts(), quantization="gptq"))
    assert caught.value.rule == "unsupported_model"


def test_an_unsupported_family_is_refused_by_name():
    with pytest.raises(ModelError, match="mamba") as caught:
        planned(facts(model_type="mamba"))
    assert caught.value.rule == "unsupported_model"


@pytest.mark.parametrize("number", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["waiting_served_ratio", "max_prefill_stall"])
def test_numbers_of_the_scheduler_are_finite_and_not_negative(name, number):
    assert refused(**{name: number})[0] == "argument"


# -- admission -----------------------------------------------------------------------------------------------


def test_no_concurrent_requests_are_refused():
    rule, text = refused(max_concurrent_requests=0)
    assert rule == "max_concurrent_requests"
    assert "--max-concurrent-requests is 0 (flag), but must be at least 1" in text


def test_fewer_concurrent_requests_than_slots_warn_and_more_queue():
    assert any("3 of them can never be used" in w for w in planned(max_concurrent_requests=1).warnings)
    plan = planned(max_concurrent_requests=1000)
    assert plan.router.max_concurrent_requests == 1000
    assert plan.warnings == ()


def test_the_default_never_leaves_slots_empty():
    plan = planned(max_batch_size=200)
    assert plan.router.max_concurrent_requests == 200
    assert plan.warnings == ()


# -- backend -------------------------------------------------------------------------------------------------


def test_auto_is_cpu_where_there_is_no_device():
    assert planned().generators[0].backend == "cpu"
    assert planned(backend="fake").generators[0].backend == "fake"


def test_a_device_does_not_keep_anyone_from_asking_for_the_cpu():
    assert planned(backend="cpu", host=Host(inventory=Inventory(devices=1))).generators[0].backend == "cpu"


def test_the_cores_of_each_replica_reach_its_generator_and_the_table():
    plan = planned(compiled(cores=8, dtype="bfloat16"), host=machine(), data_parallel_size=3)
    assert [dict(own) for own in plan.environments] == [
        {"NEURON_RT_VISIBLE_CORES": cores} for cores in ("0-7", "8-15", "16-23")
    ]
    assert [g.uds_path for g in plan.generators] == list(plan.router.shard_uds_paths)
    assert {(g.backend, g.dtype, g.prefill_mode, g.threads) for g in plan.generators} == {
        ("neuron", "bfloat16", "insert", None)
    }
    rows = {row.name: (row.value, row.source) for row in plan.rows}
    assert rows["backend"] == ("neuron", Source.DERIVED)
    assert rows["num_shard"] == ("8", Source.MODEL)
    assert rows["data_parallel_size"] == ("3", Source.FLAG)
    assert rows["cores of replica 1"] == ("8-15", Source.DERIVED)
    assert rows["KV cache per core"] == ("256.0 KiB", Source.DERIVED)  # one of two heads on each core
    assert "cores" not in rows
    assert not any("served on the CPU" in warning for warning in plan.warnings)


def test_a_single_replica_takes_its_cores_and_no_more():
    """A process that names none reserves all of the machine."""
    plan = planned(compiled(cores=2), host=machine())
    assert plan.environments == ({"NEURON_RT_VISIBLE_CORES": "0-1"},)


def test_more_cores_than_there_are_are_refused():
    rule, text = refused(compiled(cores=8), host=machine(), data_parallel_size=4)
    assert rule == "neuron_cores"
    assert "need 32 NeuronCores, but 24 can be used" in text


# -- replicas ------------------------------------------------------------------------------------------------


def test_replicas_are_equal_but_for_their_sockets():
    plan = planned(data_parallel_size=3, directory="/tmp/x")
    assert plan.router.shard_uds_paths == ("/tmp/x/shard-0", "/tmp/x/shard-1", "/tmp/x/shard-2")
    assert len({dataclasses.replace(g, uds_path="") for g in plan.generators}) == 1
    assert plan.environments == ({}, {}, {})
    assert Row("data_parallel_size", "3", Source.FLAG) in plan.rows


@pytest.mark.parametrize("count", [0, 257])
def test_no_replicas_and_absurdly_many_are_refused_before_the_model_is_known(count):
    for check in (refused, lambda **values: refused(facts(model_type="mamba"), **values)):
        rule, text = check(data_parallel_size=count)
        assert rule == "argument"
        assert f"--data-parallel-size is {count} (flag), but must be from 1 to 256" in text


def test_the_memory_of_all_replicas_is_counted():
    host = Host(available_bytes=3 * 2**20)
    assert planned(max_total_tokens=1024, host=host, data_parallel_size=2).rows
    rule, text = refused(max_total_tokens=1024, host=host, data_parallel_size=3)
    assert rule == "memory"
    assert "--data-parallel-size 3 x --max-batch-size 4 x --max-total-tokens 1024" in text


def test_the_default_of_concurrent_requests_fills_the_slots_of_all_replicas():
    assert planned(max_batch_size=50, data_parallel_size=2).router.max_concurrent_requests == 128
    assert planned(max_batch_size=50, data_parallel_size=3).router.max_concurrent_requests == 150
    plan = planned(max_batch_size=4, data_parallel_size=3, max_concurrent_requests=5)
    assert plan.router.max_concurrent_requests == 5
    assert any("the 12 slots of all replicas: 7 of them can never be used" in w for w in plan.warnings)


def test_budgets_of_the_scheduler_are_those_of_one_replica():
    plan = planned(max_batch_size=4, max_total_tokens=100, data_parallel_size=2, max_batch_total_tokens=400)
    assert {g.max_batch_prefill_tokens for g in plan.generators} == {200}
    assert (plan.router.batch_size, plan.shape.total_tokens) == (4, 400)


def test_what_only_on_device_sampling_needs_reaches_both_programs():
    plan = planned(on_device_sampling=True, approximate_top_p=True)
    assert plan.generators[0].on_device_sampling
    assert plan.generators[0].approximate_top_p
    assert plan.router.approximate_top_p


def test_strict_needs_the_cpu_backend():
    rule, text = refused(backend="fake", strict=True)
    assert rule == "emulation"
    assert "--strict" in text


def test_fake_takes_poison_and_a_simulated_clock():
    (generator,) = planned(backend="fake", poison=True, simulated_clock="1:1=1").generators
    assert (generator.backend, generator.poison, generator.simulated_clock) == ("fake", True, "1:1=1")


@pytest.mark.parametrize(
    "clock", ["1", "0.3:", "0.3:1", "0.3:1=0.1,", "fast", "0.3:0=1", "0.3:1=1,1=2", "1.2.3:1=1"]
)
def test_a_clock_that_cannot_be_read_is_refused_with_an_example(clock):
    rule, text = refused(simulated_clock=clock)
    assert rule == "emulation"
    assert clock in text
    assert "0.3:1=0.02,16=0.04" in text


# -- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hostname", "address", "warned"),
    [
        ("0.0.0.0", "0.0.0.0", False),
        ("127.0.0.1", "127.0.0.1", False),
        ("::1", "::1", False),
        ("localhost", "127.0.0.1", False),
        ("", "0.0.0.0", False),
        pytest.param("abc", "0.0.0.0", True, marks=pytest.mark.case(186)),
        ("3f2a9c1b7d4e", "0.0.0.0", True),
    ],
)
def test_what_is_no_address_becomes_all_addresses_with_a_warning(hostname, address, warned):
    plan = planned(source=Source.ENVIRONMENT, hostname=hostname)
    assert plan.router.hostname == address
    assert any("Invalid hostname, defaulting to 0.0.0.0" in w for w in plan.warnings) is warned


def test_sockets_are_private_unless_placed():
    plan = planned(directory="/tmp/x")
    assert (plan.router.shard_uds_paths, plan.socket_directory) == (("/tmp/x/shard-0",), "/tmp/x")


@pytest.mark.parametrize(
    ("values", "path", "flag"),
    [
        ({"shard_uds_path": "/run/tgi"}, "/run/tgi-0", "--shard-uds-path"),
        ({"master_shard_uds_path": "/run/tgi"}, "/run/tgi", "--master-shard-uds-path"),
        (
            {"shard_uds_path": "/run/a", "master_shard_uds_path": "/run/b"},
            "/run/b",
            "--master-shard-uds-path",
        ),
    ],
)
def test_sockets_are_where_the_flags_say(values, path, flag):
    plan = planned(**values)
    assert (plan.router.shard_uds_paths, plan.socket_directory) == ((path,), None)
    assert plan.socket_flags == (flag,)


def test_a_socket_path_that_the_kernel_cannot_take_is_refused():
    assert planned(shard_uds_path="/" + "a" * 104).generators
    rule, text = refused(shard_uds_path="/" + "a" * 105)
    assert rule == "socket"
    assert "--shard-uds-path" in text
    assert "107" in text


# -- warnings ------------------------------------------------------------------------------------------------


def test_a_compiled_model_on_the_cpu_and_an_unproven_family_are_said():
    assert any("compiled for Neuron" in w for w in planned(compiled()).warnings)
    assert any("'gptj'" in w for w in planned(facts(model_type="gptj")).warnings)
    assert any("memory of the rest" in w for w in planned(compiled(4, 1024), max_total_tokens=900).warnings)
    assert any("trust_remote_code" in w for w in planned(trust_remote_code=True).warnings)


def test_flags_without_effect_are_said_once():
    assert sum("--speculate" in w for w in planned(speculate=2).warnings) == 1


# -- what goes to both programs ------------------------------------------------------------------------------


def test_tracing_and_grammar_switches_reach_router_and_generator():
    plan = planned(
        disable_grammar_support=True, otlp_endpoint="http://collector:4317", otlp_service_name="mine"
    )
    for config in (plan.router, *plan.generators):
        assert config.disable_grammar_support
        assert (config.otlp_endpoint, config.otlp_service_name) == ("http://collector:4317", "mine")
    plan = planned()
    for config in (plan.router, *plan.generators):
        assert not config.disable_grammar_support
        assert config.otlp_endpoint is None
        assert config.otlp_service_name == "text-generation-inference.router"


@pytest.mark.parametrize("endpoint", ["ftp://host:1", "http://host:port", "http://host/v1/traces", "http://"])
def test_an_endpoint_that_is_no_address_is_refused_by_the_flags_name(endpoint):
    rule, text = refused(otlp_endpoint=endpoint)
    assert rule == "argument"
    assert "--otlp-endpoint" in text
    assert endpoint in text


def test_the_generators_log_json_because_the_launcher_says_it_again():
    assert planned().generators[0].json_output
    assert not planned().router.json_output
    assert planned(json_output=True).router.json_output


def test_what_the_hub_says_of_the_model_reaches_the_router():
    model = Model("org/model", "/m", facts(), revision="abc", weight_bytes=1, pipeline_tag="text-generation")
    made = plan(Parameters.of(), model, Host(), private_directory="/tmp/x")
    assert (made.router.revision, made.router.pipeline_tag) == ("abc", "text-generation")


def test_no_prompt_in_a_completions_request_is_taken_as_tgi_takes_it_and_said():
    plan = planned(max_client_batch_size=0)
    assert plan.router.max_client_batch_size == 0
    assert any("--max-client-batch-size is 0" in w for w in plan.warnings)


def test_flags_of_tgi_that_do_nothing_here_start_and_are_said():
    plan = planned(usage_stats="off", prometheus_port=9000)
    assert any("--usage-stats has no effect: Nothing is ever sent" in w for w in plan.warnings)
    assert any(
        "--prometheus-port has no effect: /metrics is served on the main port" in w for w in plan.warnings
    )
