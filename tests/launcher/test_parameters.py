from __future__ import annotations

import pytest

from launcher.parameters import Given, Parameters, Source
from neuron_server.errors import ConfigError


def _inputs(new: tuple[int, Source] | None, old: tuple[int, Source] | None) -> Parameters:
    named = {"max_input_tokens": new, "max_input_length": old}
    return Parameters({name: Given(*value, name) for name, value in named.items() if value})


FLAG, ENV = Source.FLAG, Source.ENVIRONMENT


@pytest.mark.parametrize(
    ("new", "old", "winner"),
    [
        (None, (10, FLAG), (10, FLAG, "max_input_length")),
        (None, (10, ENV), (10, ENV, "max_input_length")),
        ((20, ENV), (10, FLAG), (10, FLAG, "max_input_length")),
        ((20, FLAG), (10, ENV), (20, FLAG, "max_input_tokens")),
        ((10, ENV), (10, ENV), (10, ENV, "max_input_tokens")),
        (None, None, (None, Source.DEFAULT, "max_input_tokens")),
    ],
)
def test_both_names_of_the_input_limit_are_one_parameter(new, old, winner):
    given = _inputs(new, old)["max_input_tokens"]
    assert (given.value, given.source, given.name) == winner


@pytest.mark.parametrize(("a", "b", "source"), [(10, 10, FLAG), (10, 20, FLAG), (10, 20, ENV)])
def test_both_names_given_the_same_way_is_tgis_error(a, b, source):
    with pytest.raises(ConfigError) as caught:
        _inputs((a, source), (b, source))
    assert caught.value.rule == "argument"
    assert str(caught.value) == (
        f"Both `max_input_tokens` ({a}) and `max_input_length` ({b}) are set. Please define only "
        "`max_input_tokens` as `max_input_length is deprecated for naming consistency."
    )


def test_what_is_not_given_has_its_default():
    parameters = Parameters.of()
    assert parameters.counted("port") == 3000
    assert parameters.integer("max_batch_size") is None
    assert parameters.texts("cors_allow_origin") == ()
    assert parameters["port"].source is Source.DEFAULT


def test_an_unknown_name_or_a_wrong_type_is_an_error():
    with pytest.raises(KeyError):
        Parameters.of(no_such_flag=1)
    parameters = Parameters.of()
    with pytest.raises(TypeError):
        parameters.integer("hostname")
    with pytest.raises(TypeError):
        parameters.integer("json_output")  # a bool is no integer
    with pytest.raises(TypeError):
        parameters.counted("max_batch_size")


def test_a_value_in_a_message_names_flag_value_and_source():
    given = Parameters.of(max_batch_size=8)["max_batch_size"]
    assert str(given) == "--max-batch-size is 8 (flag)"
    given = Parameters.of(source=ENV, max_batch_size=8)["max_batch_size"]
    assert str(given) == "--max-batch-size is 8 (environment MAX_BATCH_SIZE)"


def test_flags_without_effect_are_named_with_the_reason_only_when_given():
    assert Parameters.of().without_effect() == ()
    assert Parameters.of(ngrok=False).without_effect() == ()
    (line,) = Parameters.of(prometheus_port=9000).without_effect()
    assert line == "--prometheus-port has no effect: /metrics is served on the main port."
    (line,) = Parameters.of(source=ENV, cuda_graphs="0").without_effect()
    assert line.startswith("CUDA_GRAPHS (environment) has no effect: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("quantize", "awq"), ("kv_cache_dtype", "fp8_e5m2"), ("rope_factor", 2.0), ("lora_adapters", "a/b")],
)
def test_a_refused_flag_is_refused_by_name(name, value):
    Parameters.of().refuse_refused()
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is {value} ") as caught:
        Parameters.of(**{name: value}).refuse_refused()
    assert caught.value.rule == "refused_flag"


def test_the_dump_masks_secrets():
    dump = Parameters.of(api_key="hush", ngrok_authtoken="hush", port=80).dump()
    assert dump.startswith("Args {\n")
    assert "    port: 80," in dump
    assert "    api_key: ***," in dump
    assert "hush" not in dump
    assert "    api_key: unset," in Parameters.of().dump()


def test_the_dump_masks_a_password_in_a_url():
    dump = Parameters.of(otlp_endpoint="https://user:hush@collector:4317").dump()
    assert "otlp_endpoint: https://***@collector:4317," in dump
    assert "hush" not in dump
