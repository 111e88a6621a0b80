from __future__ import annotations

import pytest

from launcher.parameters import Parameters, Source
from launcher.vertex import with_vertex_port
from neuron_server.errors import ConfigError


def test_without_the_variable_nothing_changes():
    parameters = Parameters.of(port=80)
    assert with_vertex_port(parameters, {}) is parameters
    assert with_vertex_port(parameters, {"AIP_HTTP_PORT": ""}) is parameters


@pytest.mark.parametrize("source", [Source.FLAG, Source.ENVIRONMENT])
def test_the_variable_overrides_flag_and_variable(source, heard):
    given = with_vertex_port(Parameters.of(source=source, port=80), {"AIP_HTTP_PORT": "8080"})["port"]
    assert (given.value, given.source) == (8080, Source.ENVIRONMENT)
    assert ("overrides" in heard.text) is (source is Source.FLAG)


@pytest.mark.parametrize("text", ["0", "65536", "http", "-1", "80 80", "٨٠٨٠٨"])
def test_what_is_no_port_is_refused_by_name(text):
    with pytest.raises(ConfigError, match="AIP_HTTP_PORT") as caught:
        with_vertex_port(Parameters.of(), {"AIP_HTTP_PORT": text})
    assert caught.value.rule == "argument"
