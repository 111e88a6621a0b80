from __future__ import annotations

import pytest
from planning import compiled, facts

from launcher.parameters import Parameters, Source, Value
from launcher.static_values import StaticValues, static_values
from neuron_server.errors import ConfigError
from neuron_server.models import ModelFacts
from neuron_server.shape import StaticShape

pytestmark = pytest.mark.group(21)


def values(model: ModelFacts, **given: Value) -> StaticValues:
    return static_values(Parameters.of(**given), model)


def refused(model: ModelFacts, **given: Value) -> tuple[str, str]:
    """The rule and the text of the refusal."""
    with pytest.raises(ConfigError) as caught:
        values(model, **given)
    return caught.value.rule, str(caught.value)


EXAMPLE: dict[str, Value] = {
    "max_concurrent_requests": 16,
    "max_input_length": 512,
    "max_total_tokens": 1024,
    "max_batch_prefill_tokens": 8192,
    "max_batch_total_tokens": 16384,
}


@pytest.mark.parametrize("model", [compiled(16, 1024), facts(positions=1024), facts(positions=None)])
def test_the_example_of_the_first_release_makes_16_x_1024(model):
    got = values(model, **EXAMPLE)
    assert got.shape == StaticShape(16, 1024)
    assert (got.max_input_tokens.value, got.max_batch_prefill_tokens.value) == (512, 8192)


# -- a compiled model ----------------------------------------------------------------------------------------


def test_a_compiled_model_fixes_everything_as_the_neuron_entry_point_derives_it():
    got = values(compiled(4, 4096))
    assert got.shape == StaticShape(4, 4096)
    assert got.prefill_width == 4095
    derived = (got.max_input_tokens, got.max_batch_prefill_tokens, got.max_batch_total_tokens)
    assert [(g.value, g.source) for g in derived] == [
        (2048, Source.DERIVED),
        (8192, Source.DERIVED),
        (16384, Source.DERIVED),
    ]
    assert (got.max_batch_size.source, got.max_total_tokens.source) == (Source.MODEL, Source.MODEL)


def test_values_equal_to_the_models_are_taken_as_the_users():
    got = values(compiled(4, 1024), max_batch_size=4, max_total_tokens=1024)
    assert (got.max_batch_size.source, got.max_total_tokens.source) == (Source.FLAG, Source.FLAG)


@pytest.mark.parametrize("size", [2, 8])
def test_another_batch_size_is_refused(size):
    rule, text = refused(compiled(4), max_batch_size=size)
    assert rule == "batch_size"
    assert text.startswith(
        f"--max-batch-size is {size} (flag), but the model was compiled for 4: set it to 4"
    )


def test_a_longer_total_than_compiled_is_refused():
    rule, text = refused(compiled(4, 1024), max_total_tokens=1025)
    assert rule == "max_total_tokens"
    assert "--max-total-tokens is 1025" in text
    assert "1024" in text


def test_a_shorter_total_than_compiled_limits_the_clients_and_not_the_shape():
    got = values(compiled(4, 1024), max_total_tokens=1000)
    assert got.shape == StaticShape(4, 1024)
    assert got.max_total_tokens.value == 1000
    assert got.max_input_tokens.value == 500
    assert refused(compiled(4, 1024), max_total_tokens=1000, max_input_tokens=1000)[0] == "argument"


def test_the_prefill_graph_limits_the_input():
    got = values(compiled(4, 1024, context=256))
    assert (got.prefill_width, got.max_input_tokens.value) == (256, 256)
    assert values(compiled(4, 1024, context=256), max_input_tokens=256).max_input_tokens.value == 256
    rule, text = refused(compiled(4, 1024, context=256), max_input_tokens=257)
    assert rule == "max_input_tokens"
    assert "--max-input-tokens is 257 (flag), but must be from 1 to 256" in text
    assert "prefill graph" in text


def test_the_input_leaves_room_for_one_token():
    assert values(compiled(4, 1024), max_input_tokens=1023).max_input_tokens.value == 1023
    rule, text = refused(compiled(4, 1024), max_input_tokens=1024)
    assert rule == "max_input_tokens"
    assert "from 1 to 1023" in text


# -- a plain model -------------------------------------------------------------------------------------------


def test_a_plain_model_gets_sensible_defaults():
    got = values(facts(positions=4096))
    assert got.shape == StaticShape(4, 2048)
    assert (got.max_batch_size.source, got.max_total_tokens.source) == (Source.DEFAULT, Source.DEFAULT)
    assert got.prefill_width == got.max_input_tokens.value == 1024


@pytest.mark.parametrize(("positions", "length"), [(1024, 1024), (None, 2048), (2, 2)])
def test_the_default_length_is_what_the_positions_allow(positions, length):
    got = values(facts(positions=positions))
    assert got.shape.max_length == length
    assert got.max_input_tokens.value == length // 2


def test_a_long_input_makes_the_default_length_longer():
    assert values(facts(positions=8192), max_input_tokens=3000).shape.max_length == 6000
    assert values(facts(positions=4096), max_input_tokens=3000).shape.max_length == 4096
    rule, text = refused(facts(positions=4096), max_input_tokens=4096)
    assert rule == "max_input_tokens"
    assert "from 1 to 4095" in text


def test_more_total_tokens_than_positions_are_refused_with_both_numbers():
    assert values(facts(positions=1024), max_total_tokens=1024).shape.max_length == 1024
    rule, text = refused(facts(positions=1024), max_total_tokens=1025)
    assert rule == "max_positions"
    assert "--max-total-tokens is 1025 (flag), but the model has 1024 positions" in text


@pytest.mark.parametrize("total", [0, 1])
def test_a_slot_holds_at_least_two_tokens(total):
    rule, text = refused(facts(), max_total_tokens=total)
    assert rule == "max_total_tokens"
    assert "at least 2" in text


def test_batch_and_length_come_from_the_flags():
    got = values(facts(), max_batch_size=3, max_total_tokens=100)
    assert got.shape == StaticShape(3, 100)


def test_the_batch_is_the_total_by_the_length():
    got = values(facts(), max_total_tokens=100, max_batch_total_tokens=700)
    assert (got.shape, got.max_batch_size.source) == (StaticShape(7, 100), Source.DERIVED)
    got = values(facts(positions=1024), max_batch_total_tokens=2048)
    assert got.shape == StaticShape(2, 1024)


def test_the_length_is_the_total_by_the_batch():
    got = values(facts(), max_batch_size=7, max_batch_total_tokens=700)
    assert (got.shape, got.max_total_tokens.source) == (StaticShape(7, 100), Source.DERIVED)
    assert refused(facts(positions=64), max_batch_size=7, max_batch_total_tokens=700)[0] == (
        "max_batch_total_tokens"
    )


def test_a_batch_total_that_makes_no_whole_slots_is_refused():
    rule, text = refused(facts(), max_total_tokens=100, max_batch_total_tokens=750)
    assert rule == "max_batch_total_tokens"
    assert "--max-batch-total-tokens is 750" in text
    assert "set it to 700" in text


# -- both ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [compiled(4, 1024), facts()])
def test_the_batch_total_is_b_x_t(model):
    same: dict[str, Value] = {"max_batch_size": 4, "max_total_tokens": 1024}
    assert values(model, max_batch_total_tokens=4096, **same).shape == StaticShape(4, 1024)
    rule, text = refused(model, max_batch_total_tokens=4097, **same)
    assert rule == "max_batch_total_tokens"
    assert "--max-batch-total-tokens is 4097 (flag), but must be 4096: 4 slots of 1024 tokens" in text


@pytest.mark.parametrize("model", [compiled(4, 1024), facts()])
@pytest.mark.parametrize(("tokens", "fits"), [(99, False), (100, True), (400, True), (401, False)])
def test_the_prefill_budget_is_one_to_b_longest_prompts(model, tokens, fits):
    given: dict[str, Value] = {"max_input_tokens": 100, "max_batch_prefill_tokens": tokens}
    if fits:
        assert values(model, **given).max_batch_prefill_tokens.value == tokens
        return
    rule, text = refused(model, **given)
    assert rule == "max_batch_prefill_tokens"
    assert f"--max-batch-prefill-tokens is {tokens} (flag), but must be from 100 " in text
    assert "400" in text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"max_input_tokens": 10, "max_total_tokens": 10},
            "`max_input_tokens`(10) must be < `max_total_tokens`(10)",
        ),
        (
            {"max_total_tokens": 10, "max_batch_total_tokens": 9},
            "`max_total_tokens` must be <= `max_batch_total_tokens`. Given: 10 and 9",
        ),
        ({"max_batch_size": 0}, "`max_batch_size` must be > 0"),
    ],
)
def test_tgis_own_checks_keep_their_words(given, text):
    assert refused(facts(), **given) == ("argument", text)


def test_an_empty_input_is_refused():
    rule, text = refused(facts(), max_input_tokens=0)
    assert rule == "max_input_tokens"
    assert "--max-input-tokens is 0" in text


def test_the_legacy_name_is_the_one_in_the_message_when_it_was_used():
    assert refused(facts(), max_input_length=0)[1].startswith("--max-input-length is 0 (flag)")
