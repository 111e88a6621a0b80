"""The rules of TGI's Neuron entry point; the numbers are those of its own tests."""

from __future__ import annotations

import dataclasses

import pytest
from planning import compiled, facts

from launcher.command import build
from launcher.compiled import settle
from launcher.host import Host
from launcher.parameters import Parameters, Source, Value
from launcher.plan import LaunchPlan, Model, plan
from neuron_server.errors import ConfigError
from neuron_server.models import ModelFacts

pytestmark = pytest.mark.group(21)

_MODEL = compiled(4, 4096)
assert _MODEL.static is not None
MODEL = dataclasses.replace(_MODEL, static=dataclasses.replace(_MODEL.static, cores=2, dtype="bfloat16"))


def started(
    model: ModelFacts = MODEL, environ: dict[str, str] | None = None, flags: dict[str, Value] | None = None
) -> LaunchPlan:
    """The plan where these variables are set and these flags are given."""
    environ = environ or {}
    names = {name: name.lower() for name in environ if not name.startswith("HF_")}
    variables = Parameters.of(
        source=Source.ENVIRONMENT, **{low: int(environ[name]) for name, low in names.items()}
    )
    given = {name: Parameters.of(**{name: value})[name] for name, value in (flags or {}).items()}
    parameters = Parameters({**{low: variables[low] for low in names.values()}, **given})
    described = Model("org/model", "/m", model, weight_bytes=1)
    return plan(parameters, described, Host(), private_directory="/tmp/x", environ=environ)


def values(made: LaunchPlan) -> dict[str, str]:
    return {row.name: row.value for row in made.rows}


def refused(*args: object, **kwargs: object) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        started(*args, **kwargs)  # type: ignore[arg-type]
    return caught.value.rule, str(caught.value)


@pytest.mark.case(194)
def test_with_nothing_set_the_model_decides():
    got = values(started())
    assert (got["max_batch_size"], got["max_total_tokens"], got["cores"]) == ("4", "4096", "2")
    assert (got["max_input_tokens"], got["max_batch_prefill_tokens"]) == ("2048", "8192")


@pytest.mark.case(195)
def test_a_larger_batch_size_than_compiled_is_refused():
    rule, text = refused(environ={"MAX_BATCH_SIZE": "8"})
    assert rule == "batch_size"
    assert "--max-batch-size is 8 (environment MAX_BATCH_SIZE)" in text


@pytest.mark.case(196)
def test_a_smaller_variable_becomes_the_compiled_value_and_is_told():
    made = started(environ={"MAX_BATCH_SIZE": "2", "MAX_TOTAL_TOKENS": "1024"})
    got = values(made)
    assert (got["max_batch_size"], got["max_total_tokens"]) == ("4", "4096")
    assert (made.shape.batch_size, made.shape.max_length) == (4, 4096)
    assert made.router.max_total_tokens == 4096
    for words in ("--max-batch-size is 2 (environment MAX_BATCH_SIZE): 4", "MAX_TOTAL_TOKENS): 4096"):
        assert any(words in warning for warning in made.warnings)


def test_the_users_input_and_prefill_are_kept():
    got = values(started(environ={"MAX_INPUT_TOKENS": "3000", "MAX_BATCH_PREFILL_TOKENS": "3500"}))
    assert (got["max_input_tokens"], got["max_batch_prefill_tokens"]) == ("3000", "3500")


def test_an_input_is_compared_with_the_compiled_length_not_with_a_variable_that_gives_way():
    environ = {"MAX_TOTAL_TOKENS": "1024", "MAX_INPUT_TOKENS": "2000"}
    assert values(started(environ=environ))["max_input_tokens"] == "2000"
    assert refused(environ={"MAX_INPUT_TOKENS": "4096"})[0] == "max_input_tokens"


ALL_SIX = {
    "HF_NUM_CORES": "2",
    "HF_AUTO_CAST_TYPE": "bf16",
    "MAX_BATCH_SIZE": "4",
    "MAX_TOTAL_TOKENS": "2048",
    "MAX_INPUT_TOKENS": "1000",
    "MAX_BATCH_PREFILL_TOKENS": "2000",
}


@pytest.mark.case(197)
def test_where_all_six_are_set_the_users_values_are_kept():
    made = started(environ=ALL_SIX)
    got = values(made)
    assert (got["max_batch_size"], got["max_total_tokens"]) == ("4", "2048")
    assert (got["max_input_tokens"], got["max_batch_prefill_tokens"]) == ("1000", "2000")
    assert made.shape.max_length == 4096  # what was compiled is what is allocated
    assert made.router.max_total_tokens == 2048


def test_where_all_six_are_set_nothing_is_compared_but_what_cannot_run_is_refused():
    assert started(environ={**ALL_SIX, "HF_NUM_CORES": "8", "HF_AUTO_CAST_TYPE": "fp16"}).rows
    assert refused(environ={**ALL_SIX, "MAX_BATCH_SIZE": "2"})[0] == "batch_size"
    assert refused(environ={**ALL_SIX, "MAX_TOTAL_TOKENS": "8192"})[0] == "max_total_tokens"


def test_flags_win_over_what_is_derived():
    got = values(started(environ={"MAX_TOTAL_TOKENS": "2000"}, flags={"max_total_tokens": 1000}))
    assert got["max_total_tokens"] == "1000"
    assert refused(flags={"max_batch_size": 2})[0] == "batch_size"


@pytest.mark.parametrize("flag", ["max_input_tokens", "max_input_length"])
def test_the_legacy_flag_does_not_clash_with_the_variable_that_the_entry_point_exports(flag):
    made = started(environ={"MAX_INPUT_TOKENS": "2048"}, flags={flag: 512})
    assert made.router.max_input_tokens == 512


@pytest.mark.parametrize(
    ("cores", "fits"), [("1", True), ("2", True), ("3", False), ("two", False), ("0", False)]
)
def test_the_cores_of_the_model_are_at_least_those_asked_for(cores, fits):
    if fits:
        assert started(environ={"HF_NUM_CORES": cores}).rows
        return
    rule, text = refused(environ={"HF_NUM_CORES": cores})
    assert rule == "neuron_environment"
    assert text.startswith("Invalid neuron config and env. HF_NUM_CORES is ")


@pytest.mark.parametrize("cast", ["bf16", "bfloat16", "torch.bfloat16", "BF16", ""])
def test_the_cast_type_is_the_models_in_any_spelling(cast):
    assert started(environ={"HF_AUTO_CAST_TYPE": cast}).rows


@pytest.mark.parametrize("cast", ["fp16", "float16", "int3"])
def test_another_cast_type_is_refused(cast):
    rule, text = refused(environ={"HF_AUTO_CAST_TYPE": cast})
    assert rule == "neuron_environment"
    assert f"HF_AUTO_CAST_TYPE is {cast!r}" in text or f"HF_AUTO_CAST_TYPE is {cast}," in text


def test_a_plain_model_knows_nothing_of_it():
    parameters = Parameters.of(source=Source.ENVIRONMENT, max_batch_size=2)
    settled = settle(parameters, facts(), {"HF_NUM_CORES": "99", "HF_AUTO_CAST_TYPE": "int3"})
    assert settled.parameters is parameters
    assert settled.warnings == ()


def test_the_variables_are_read_as_the_command_reads_them(monkeypatch):
    """From the real environment through typer to the value that is kept."""
    monkeypatch.setenv("MAX_BATCH_SIZE", "2")
    seen: list[Parameters] = []

    def launch(parameters: Parameters) -> int:
        seen.append(parameters)
        return 0

    build(launch)([], standalone_mode=False)
    assert settle(seen[0], MODEL, {}).parameters["max_batch_size"].value == 4


def test_names_of_long_ago_are_told_to_be_so():
    made = started(environ={"HF_BATCH_SIZE": "4", "HF_SEQUENCE_LENGTH": ""})
    assert "HF_BATCH_SIZE has no effect: its name is MAX_BATCH_SIZE now" in made.warnings
    assert not any("HF_SEQUENCE_LENGTH" in warning for warning in made.warnings)
