"""Vertex AI says by environment where it will look for the server."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from launcher.parameters import Given, Parameters, Source
from neuron_server.errors import ConfigError

log = logging.getLogger("text_generation_launcher")

PORT = "AIP_HTTP_PORT"


def with_vertex_port(parameters: Parameters, environ: Mapping[str, str]) -> Parameters:
    """``AIP_HTTP_PORT`` overrides ``--port``, flag included, as in TGI's build for Vertex.

    Raises ``ConfigError`` where it is no port: TGI would listen on its own, and Vertex wait for nothing.
    """
    text = environ.get(PORT, "").strip()
    if not text:
        return parameters
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ConfigError(f"{PORT} is {text!r}, but must be a port from 1 to 65535, or unset")
    given = parameters["port"]
    if given.source is Source.FLAG and given.value != int(text):
        log.warning("%s, but %s is %s and overrides it", given, PORT, text)
    return parameters.replaced({"port": Given(int(text), Source.ENVIRONMENT, "port")})
