from __future__ import annotations

from launcher.doctor.finding import fail, of_error, ok, warn
from neuron_server.errors import ConfigError, ModelError


def test_a_finding_is_one_line_with_its_fix_at_the_end():
    assert str(ok("port", "0.0.0.0:3000 is free")) == "ok    port: 0.0.0.0:3000 is free"
    assert str(warn("port", "it is odd", "change it")) == "warn  port: it is odd -> change it"
    assert str(fail("port", "two\nlines", "no\nfix")) == "FAIL  port: two lines -> no fix"


def test_a_program_gets_the_same_four_things():
    assert fail("port", "taken", "stop it").as_json() == {
        "check": "port",
        "status": "FAIL",
        "found": "taken",
        "fix": "stop it",
    }
    assert ok("port", "free").as_json()["fix"] is None


def test_an_error_of_the_launcher_is_split_at_its_remedy():
    found = of_error("port", ConfigError("--port is 1, but x: stop it", rule="port_in_use"))
    assert (found.found, found.fix) == ("--port is 1, but x", "stop it")


def test_a_cause_is_not_taken_for_a_remedy():
    error = ModelError("config.json cannot be read as JSON: Expecting value", rule="config_corrupt")
    assert of_error("model", error).fix is None
    assert of_error("model", error).found == str(error)
    assert of_error("model", ModelError("no colon", rule="model_missing")).fix is None
