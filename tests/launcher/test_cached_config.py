"""Group 21: which cached configuration serves a plain model."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import pytest

from launcher.cached_config import Wanted, differences, select, wanted_of
from launcher.parameters import Parameters, Source
from launcher.server import parse_export
from neuron_server.errors import ConfigError, ModelError
from neuron_server.models import StaticFacts

pytestmark = pytest.mark.group(21)


def entry(batch: int, length: int = 4096, cores: int = 2, **changes: Any) -> StaticFacts:
    made = StaticFacts(
        batch_size=batch, sequence_length=length, max_context_length=length, generation="nxd",
        continuous_batching=batch > 1, cores=cores, tensor_parallel=cores, dtype="bfloat16", target="trn1",
        optimum_version="0.4.5", compiler_version="2.21.33363.0+82129205", on_device_sampling=True,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


#: What a public cache has of an 8B model, in kind.
CACHE = [
    entry(1, cores=8),
    entry(4, cores=8),
    entry(32, cores=8),
    entry(8, cores=24),
    entry(1),
    entry(4, 2048),
]


def refused(wanted: Wanted, entries: list[StaticFacts]) -> str:
    with pytest.raises(ModelError) as caught:
        select(wanted, entries, model_id="org/model")
    assert caught.value.rule == "no_cached_config"
    return str(caught.value)


def test_an_entry_that_no_backend_serves_is_never_chosen_and_says_why():
    chunked = entry(8, obstacles=("prefill_chunk_size 512, which is not served",))
    assert select(Wanted(), [chunked, entry(4)]).chosen.batch_size == 4
    assert "(has prefill_chunk_size 512, which is not served)" in refused(Wanted(), [chunked])


def test_who_asks_for_4_slots_gets_4_and_never_32():
    """TGI's issues 3248 and 3299: its last releases take any entry that is at least as large."""
    assert select(Wanted(batch_size=4), CACHE).chosen.batch_size == 4
    assert "batch size 4" in refused(Wanted(batch_size=5), CACHE)
    only_larger = [entry(32, cores=8)]
    refused(Wanted(batch_size=4), only_larger)
    refused(Wanted(sequence_length=2048), [entry(4, 4096)])
    refused(Wanted(tensor_parallel=2), [entry(4, cores=8)])
    refused(Wanted(dtype="float16"), [entry(4)])
    refused(Wanted(on_device_sampling=False), [entry(4)])


def test_all_that_was_set_must_match():
    wanted = Wanted(batch_size=4, sequence_length=4096, tensor_parallel=8, dtype="bfloat16")
    choice = select(wanted, CACHE)
    assert (choice.chosen, choice.alternatives) == (entry(4, cores=8), ())


def test_with_nothing_set_more_cores_then_more_slots_then_longer_texts():
    assert select(Wanted(), CACHE).chosen == entry(8, cores=24)
    choice = select(Wanted(cores=8), CACHE)
    assert choice.chosen == entry(32, cores=8)
    assert choice.alternatives == (entry(4, cores=8), entry(1, cores=8), entry(4, 2048), entry(1))
    assert select(Wanted(), [entry(4, 2048), entry(4, 8192), entry(4, 4096)]).chosen.sequence_length == 8192


def test_an_entry_for_more_cores_than_there_are_is_no_match_but_is_shown():
    text = refused(Wanted(cores=1), CACHE)
    assert "needs 2 cores of 1" in text


def test_the_type_of_the_checkpoint_is_preferred_where_none_was_asked_for():
    both = [entry(4, cores=8, dtype="float16"), entry(4)]
    assert select(Wanted(checkpoint_dtype="bfloat16"), both).chosen.dtype == "bfloat16"
    assert select(Wanted(checkpoint_dtype="bfloat16", dtype="float16"), both).chosen.dtype == "float16"
    assert select(Wanted(checkpoint_dtype="float32"), both).chosen.dtype == "float16"  # more cores


def test_sampling_on_the_host_is_preferred_where_nothing_else_differs():
    host = entry(4, on_device_sampling=False)
    assert select(Wanted(), [entry(4), host]).chosen == host
    assert select(Wanted(on_device_sampling=True), [entry(4), host]).chosen == entry(4)


def test_prompts_must_fit_and_the_product_come_out():
    short = entry(4, 4096, max_context_length=1024)
    assert differences(Wanted(max_input_tokens=1024), short) == ()
    assert differences(Wanted(max_input_tokens=1025), short) == ("--max-input-tokens",)
    assert differences(Wanted(max_input_tokens=4096), entry(4)) == ("--max-input-tokens",)
    assert differences(Wanted(batch_total_tokens=4 * 4096), entry(4)) == ()
    assert differences(Wanted(batch_total_tokens=4096), entry(4)) == ("--max-batch-total-tokens",)


def test_another_target_or_compiler_is_no_match():
    here = Wanted(target="trn1", compiler="2.21.33363.0")
    assert select(here, CACHE).chosen.batch_size == 8
    assert select(here, [entry(4, target=None, compiler_version=None)]).chosen.batch_size == 4
    assert "is for trn2" in refused(here, [entry(4, target="trn2")])
    assert "2.15.143.0" in refused(here, [entry(4, compiler_version="2.15.143.0+e39249ad")])


def test_equal_entries_count_once():
    assert select(Wanted(), [entry(4), entry(4)]).alternatives == ()


def test_the_nearest_come_first_and_the_command_line_makes_what_was_asked_for():
    text = refused(Wanted(batch_size=5, sequence_length=4096, cores=24), CACHE)
    assert "of org/model with --max-batch-size 5 --max-total-tokens 4096 for 24 core(s)" in text
    assert "Of the 6 that it has" in text
    assert text.index("batch size 4, sequence length 4096") < text.index("batch size 8")
    assert "batch size 32" not in text  # only the three nearest
    line = text.partition("Or compile it: ")[2]
    parsed = parse_export(shlex.split(line)[2:])
    assert (parsed.model_id, parsed.batch_size, parsed.sequence_length) == ("org/model", 5, 4096)
    assert parsed.tensor_parallel_size == 24


def test_an_empty_cache_says_so():
    text = refused(Wanted(cores=2, checkpoint_dtype="bfloat16"), [])
    assert "no configuration of org/model for 2 core(s)" in text
    assert "text-generation-server export org/model" in text
    assert "--dtype bfloat16" in text


# -- what the parameters wish --------------------------------------------------------------------------------


def test_only_what_the_user_set_is_wished():
    assert wanted_of(Parameters.of(), {}, cores=24) == Wanted(cores=24)
    parameters = Parameters.of(
        max_batch_size=4, max_total_tokens=2048, num_shard=8, dtype="bfloat16", max_input_tokens=100
    )
    assert wanted_of(parameters, {}, cores=None) == Wanted(
        batch_size=4, sequence_length=2048, tensor_parallel=8, dtype="bfloat16", max_input_tokens=100
    )
    from_environment = Parameters.of(source=Source.ENVIRONMENT, max_batch_size=4)
    assert wanted_of(from_environment, {}, cores=None).batch_size == 4


def test_tgis_variables_count_where_no_flag_says_otherwise():
    environ = {"HF_NUM_CORES": "2", "HF_AUTO_CAST_TYPE": "bf16"}
    wanted = wanted_of(Parameters.of(), environ, cores=2)
    assert (wanted.tensor_parallel, wanted.dtype) == (2, "bfloat16")
    wanted = wanted_of(Parameters.of(num_shard=8, dtype="float32"), environ, cores=8)
    assert (wanted.tensor_parallel, wanted.dtype) == (8, "float32")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_NUM_CORES", "all"),
        ("HF_NUM_CORES", "0"),
        ("HF_NUM_CORES", "9" * 99),
        ("HF_AUTO_CAST_TYPE", "int8"),
    ],
)
def test_a_variable_that_is_no_such_value_is_named(name, value):
    with pytest.raises(ConfigError, match=name) as caught:
        wanted_of(Parameters.of(), {name: value}, cores=2)
    assert caught.value.rule == "neuron_environment"


def test_replicas_share_the_cores():
    assert wanted_of(Parameters.of(data_parallel_size=3), {}, cores=24).cores == 8
    assert wanted_of(Parameters.of(sharded="false"), {}, cores=24).tensor_parallel == 1
