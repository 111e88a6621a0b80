"""What goes over the wire comes back equal, and every error has its name."""

from __future__ import annotations

import inspect
import math

import grpc
import numpy as np
import pytest

from neuron_server import errors
from neuron_server.backend import BackendInfo
from neuron_server.event import FinishReason, TokenEvent, TopToken
from neuron_server.request import GenerationRequest, SamplingParams
from neuron_server.session import Pass, Phase, Status, Step
from neuron_server.shape import StaticShape
from neuron_server.wire import codec
from neuron_server.wire.pb import generator_pb2 as pb

#: What only the router raises, so that it never travels.
ABOVE_THE_WIRE = (errors.ChatTemplateError, errors.ToolError)
ERROR_CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, errors.NeuronTgiError) and not issubclass(value, ABOVE_THE_WIRE)
]


def f32(value: float) -> float:
    return float(np.float32(value))


def over_the_wire(message):
    return type(message).FromString(message.SerializeToString())


# -- requests


@pytest.mark.parametrize(
    "request_",
    [
        GenerationRequest((0,), 1, 1),
        GenerationRequest(
            input_ids=(1, 2, 3, 2**32 - 1),
            prompt_length=2,
            max_new_tokens=1000,
            sampling=SamplingParams(
                do_sample=True,
                temperature=0.7,
                top_k=50,
                top_p=0.95,
                typical_p=0.2,
                repetition_penalty=1.1,
                frequency_penalty=-0.3,
                seed=2**64 - 1,
                top_n_tokens=5,
            ),
            stop_ids=frozenset({2, 0, 128001}),
            prompt_logprobs=True,
        ),
    ],
)
def test_a_request_comes_back_equal(request_):
    sent = over_the_wire(codec.encode_submit(7, request_))
    assert sent.WhichOneof("message") == "submit"
    assert sent.submit.request_id == 7
    assert codec.decode_submit(sent.submit) == request_


def test_a_temperature_too_small_for_float32_stays_above_zero():
    sent = codec.encode_submit(1, GenerationRequest((1,), 1, 1, SamplingParams(True, temperature=1e-300)))
    assert codec.decode_submit(over_the_wire(sent).submit).sampling.temperature == 1e-300


def test_absent_sampling_is_greedy_with_neutral_values():
    sent = pb.Submit(request_id=1, input_ids=[1], prompt_length=1, max_new_tokens=1)
    assert codec.decode_submit(sent).sampling == SamplingParams()


@pytest.mark.parametrize(
    "request_",
    [
        GenerationRequest((-1,), 1, 1),
        GenerationRequest((2**32,), 1, 1),
        GenerationRequest((1,), 1, -5),
        GenerationRequest((1,), 1, 1, SamplingParams(seed=2**64)),
    ],
)
def test_a_number_that_does_not_fit_is_a_validation_error_not_a_crash(request_):
    with pytest.raises(errors.ValidationError, match="does not fit the wire"):
        codec.encode_submit(1, request_)


# -- events


def step_over_the_wire(*events: TokenEvent) -> list[TokenEvent]:
    message = codec.encode_step(Step(tokens=tuple(enumerate(events))))
    return [codec.decode_event(sent) for sent in over_the_wire(message).tokens]


def test_events_come_back_equal():
    events = [
        TokenEvent(0),
        TokenEvent(5, logprob=0.0),
        TokenEvent(5, logprob=f32(-0.1), top_tokens=(TopToken(5, f32(-0.1)), TopToken(9, f32(-3.3)))),
        TokenEvent(6, finish=FinishReason.LENGTH),
        TokenEvent(
            6, finish=FinishReason.EOS_TOKEN, queue_s=0.1, prompt_logprobs=(None, f32(-2.2), -math.inf)
        ),
        TokenEvent(7, queue_s=0.0, prompt_logprobs=(None,)),
    ]
    assert step_over_the_wire(*events) == events


def test_an_absent_logprob_is_none_and_a_zero_one_is_zero():
    absent, zero = step_over_the_wire(TokenEvent(1), TokenEvent(1, logprob=0.0))
    assert absent.logprob is None
    assert zero.logprob == 0.0


def test_a_logprob_keeps_float32_precision():
    (event,) = step_over_the_wire(TokenEvent(1, logprob=-1 / 3))
    assert event.logprob == f32(-1 / 3)


def test_minus_infinity_stays():
    (event,) = step_over_the_wire(TokenEvent(1, logprob=-math.inf))
    assert event.logprob == -math.inf


def test_a_step_is_one_message_with_ids_errors_and_occupancy():
    step = Step(
        tokens=((3, TokenEvent(10)), (2**63, TokenEvent(11))),
        errors=((9, errors.ValidationError("top_p is 2")),),
        free_slots=3,
        queued=8,
    )
    message = over_the_wire(codec.encode_step(step))
    assert [t.request_id for t in message.tokens] == [3, 2**63]
    assert (message.free_slots, message.queued) == (3, 8)
    (failed,) = message.errors
    assert failed.request_id == 9
    error = codec.decode_error(failed)
    assert type(error) is errors.ValidationError
    assert str(error) == "top_p is 2"


@pytest.mark.parametrize(
    "one",
    [
        Pass("prefill", 1, 1, 0.25, 1e-7, 5, 20, 3, False, "backpressure"),
        Pass("decode", 4, forward_s=1.5, failed=True),
    ],
)
def test_a_pass_comes_back_equal(one):
    message = codec.encode_step(Step(passes=(one, one)))
    assert [codec.decode_pass(sent) for sent in message.passes] == [one, one]


def test_a_stop_sequence_is_the_router_s_word_and_never_travels():
    with pytest.raises(KeyError):
        codec.encode_step(Step(tokens=((1, TokenEvent(1, finish=FinishReason.STOP_SEQUENCE)),)))


def test_every_other_finish_reason_has_its_code():
    assert set(codec._FINISH) == set(FinishReason) - {FinishReason.STOP_SEQUENCE}
    assert {0, *codec._FINISH.values()} == set(pb.FinishReason.values())


# -- errors


def expected_class(kind: type[errors.NeuronTgiError]) -> type[errors.NeuronTgiError]:
    if issubclass(kind, errors.DeviceFailedError):
        return errors.GeneratorLostError
    if issubclass(kind, (errors.BackendError, errors.ConfigError, errors.ModelError)):
        return errors.GenerationError
    return errors.GenerationError if kind is errors.NeuronTgiError else kind


@pytest.mark.parametrize("kind", ERROR_CLASSES, ids=lambda kind: kind.__name__)
def test_each_error_of_the_tree_comes_back_as_the_router_should_raise_it(kind):
    error = codec.decode_error(over_the_wire(codec.encode_error(4, kind("slot 3: what went wrong"))))
    assert type(error) is expected_class(kind)
    assert str(error) == "slot 3: what went wrong"


@pytest.mark.parametrize("kind", ERROR_CLASSES, ids=lambda kind: kind.__name__)
def test_each_error_of_the_tree_is_in_both_tables_itself_or_by_a_named_family(kind):
    families = {errors.BackendError}
    assert kind in codec._WORDS or set(kind.__mro__) & families
    assert kind in codec._STATUS or set(kind.__mro__) & families
    assert isinstance(codec.status_code(kind("x")), grpc.StatusCode)


def test_each_word_has_a_class():
    assert set(codec._WORDS.values()) == set(codec._CLASSES)


def test_a_subclass_nobody_listed_goes_by_its_base():
    class Newer(errors.PromptTooLongError):
        pass

    assert codec.error_word(Newer("x")) == "generation"
    assert codec.status_code(Newer("x")) is grpc.StatusCode.INTERNAL


def test_a_word_of_a_newer_generator_is_a_generation_error():
    error = codec.decode_error(pb.RequestError(error_type="quota", message="m"))
    assert type(error) is errors.GenerationError


def test_a_status_without_an_answer_means_lost():
    for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        assert type(codec.error_of_status(code, "m")) is errors.GeneratorLostError
    assert type(codec.error_of_status(grpc.StatusCode.FAILED_PRECONDITION, "m")) is errors.UnavailableError


# -- state


@pytest.mark.parametrize("phase", list(Phase))
def test_each_phase_comes_back(phase):
    status = Status(phase, free_slots=3, queued=7, detail="why")
    assert codec.decode_status(over_the_wire(codec.encode_status(status))) == status


def test_every_phase_code_is_known():
    assert set(codec._PHASES) == set(Phase)
    assert set(codec._PHASES_BACK) == set(pb.Phase.values())


@pytest.mark.parametrize("mode", ["insert", "rebuild"])
def test_backend_info_comes_back_equal(mode):
    info = BackendInfo(StaticShape(16, 1024), 512, 50257, mode, "logits", "bfloat16", "neuron:0", True)
    assert codec.decode_info(over_the_wire(codec.encode_info(info))) == info


def test_the_info_of_a_device_that_samples_comes_back_equal():
    info = BackendInfo(StaticShape(16, 1024), 512, 50257, "insert", "tokens", max_top_k=256)
    assert codec.decode_info(over_the_wire(codec.encode_info(info))) == info


def test_a_token_without_a_log_probability_comes_back_without_one():
    step = Step(((3, TokenEvent(42)),), ())
    (sent,) = over_the_wire(codec.encode_step(step)).tokens
    assert codec.decode_event(sent) == TokenEvent(42)


def test_an_unknown_prefill_mode_names_the_versions_as_the_cause():
    sent = codec.encode_info(BackendInfo(StaticShape(1, 8), 4, 10))
    sent.prefill_mode = "chunked"
    with pytest.raises(errors.UnavailableError, match=r"prefill_mode='chunked'.*insert, rebuild.*versions"):
        codec.decode_info(sent)
