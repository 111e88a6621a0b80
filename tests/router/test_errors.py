"""The table from errors to HTTP is exhaustive."""

from __future__ import annotations

import json

import pytest

from neuron_server import errors
from neuron_server.router.errors import STATUS, failure_label, reply


def tree():
    """Every class of the tree itself; other modules may have branches of their own."""
    kinds = (kind for kind in vars(errors).values() if isinstance(kind, type))
    return [kind for kind in kinds if issubclass(kind, errors.NeuronTgiError)]


@pytest.mark.parametrize("kind", tree())
def test_every_error_has_a_status_and_a_body(kind):
    answer = reply(kind("why"))
    nearest = next(k for k in kind.__mro__ if k in STATUS)
    assert answer.status == STATUS[nearest]
    assert nearest is not errors.NeuronTgiError or kind is errors.NeuronTgiError
    assert list(json.loads(answer.body)) == ["error", "error_type"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.ValidationError("no"), (422, "Input validation error: no", "validation")),
        (errors.OverloadedError("no permits"), (429, "Model is overloaded", "overloaded")),
        (errors.UnavailableError("draining"), (503, "draining", "unavailable")),
        (
            errors.GenerationError("boom"),
            (424, "Request failed during generation: Server error: boom", "generation"),
        ),
        (
            errors.GeneratorLostError("gone"),
            (
                424,
                "Request failed during generation: Could not connect to Text Generation server: gone",
                "generation",
            ),
        ),
        (
            errors.SlotBusyError("slot 3"),
            (424, "Request failed during generation: Server error: slot 3", "generation"),
        ),
        (errors.IncompleteGenerationError("x"), (500, "Incomplete generation", "incomplete_generation")),
        (ValueError("secret"), (500, "Internal server error", "internal")),
    ],
)
def test_each_kind_is_told_in_tgis_words(error, text):
    assert tuple(reply(error)) == text


def test_failures_are_counted_under_tgis_labels():
    assert failure_label(errors.GeneratorLostError("x")) == "generation"
    assert failure_label(errors.UnavailableError("x")) is None
