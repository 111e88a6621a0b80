"""Rank-0 dataclasses to protobuf and back, and what each error is called on the wire.

Protobuf lives in ``wire/`` only: everything above and below speaks the dataclasses. Ids, counts and sampling
parameters (doubles) are exact in both directions. Log-probabilities travel as float32, which is what a device
computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields
from typing import Literal, TypeVar, cast, get_args

import grpc

from neuron_server.backend import BackendInfo, OutputKind, PrefillMode
from neuron_server.errors import (
    BackendError,
    ConfigError,
    DeviceFailedError,
    GenerationError,
    GeneratorLostError,
    IncompleteGenerationError,
    ModelError,
    NeuronTgiError,
    OverloadedError,
    UnavailableError,
    ValidationError,
)
from neuron_server.event import FinishReason, TokenEvent, TopToken
from neuron_server.grammar import Grammar, GrammarKind
from neuron_server.request import GenerationRequest, SamplingParams
from neuron_server.session import Pass, Phase, Status, Step
from neuron_server.shape import StaticShape
from neuron_server.wire.pb import generator_pb2 as pb

Word = TypeVar("Word", bound=str)

# -- errors --------------------------------------------------------------------------------------------------

ErrorWord = Literal[
    "validation", "overloaded", "unavailable", "generation", "generator_lost", "incomplete_generation",
    "device_failed",
]  # fmt: skip

#: What an error that ends one request is called. A class that is not named here goes by its nearest base.
_WORDS: dict[type[NeuronTgiError], ErrorWord] = {
    ValidationError: "validation",
    OverloadedError: "overloaded",
    UnavailableError: "unavailable",
    GenerationError: "generation",
    GeneratorLostError: "generator_lost",
    IncompleteGenerationError: "incomplete_generation",
    BackendError: "generation",
    DeviceFailedError: "device_failed",
    ConfigError: "generation",
    ModelError: "generation",
    NeuronTgiError: "generation",
}

#: What the router raises. The process of a failed device exits, so to the router that generator is lost (and
#: the request can be resumed elsewhere); a broken backend contract is the generator's own affair.
_CLASSES: dict[ErrorWord, type[NeuronTgiError]] = {
    "validation": ValidationError,
    "overloaded": OverloadedError,
    "unavailable": UnavailableError,
    "generation": GenerationError,
    "generator_lost": GeneratorLostError,
    "incomplete_generation": IncompleteGenerationError,
    "device_failed": GeneratorLostError,
}

#: The status of a whole call that ends with an error (``Info``; a request's own error travels in its step).
_STATUS: dict[type[NeuronTgiError], grpc.StatusCode] = {
    ValidationError: grpc.StatusCode.INVALID_ARGUMENT,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.FAILED_PRECONDITION,
    GenerationError: grpc.StatusCode.INTERNAL,
    GeneratorLostError: grpc.StatusCode.UNAVAILABLE,
    IncompleteGenerationError: grpc.StatusCode.INTERNAL,
    BackendError: grpc.StatusCode.INTERNAL,
    DeviceFailedError: grpc.StatusCode.UNAVAILABLE,
    ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
    ModelError: grpc.StatusCode.FAILED_PRECONDITION,
    NeuronTgiError: grpc.StatusCode.INTERNAL,
}

#: And back: every status that is not here says that the way to the generator broke.
_FROM_STATUS: dict[grpc.StatusCode, type[NeuronTgiError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: ValidationError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.FAILED_PRECONDITION: UnavailableError,
    grpc.StatusCode.INTERNAL: GenerationError,
    grpc.StatusCode.UNKNOWN: GenerationError,
}


def error_word(error: NeuronTgiError) -> ErrorWord:
    """What the error is called in ``RequestError.error_type``."""
    return next(_WORDS[kind] for kind in type(error).__mro__ if kind in _WORDS)


def error_class(word: str) -> type[NeuronTgiError]:
    """The class the router raises; a word it does not know (a newer generator) is a ``GenerationError``."""
    return _CLASSES.get(cast(ErrorWord, word), GenerationError)


def status_code(error: NeuronTgiError) -> grpc.StatusCode:
    """The gRPC status of a call that ends with this error."""
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)


def error_of_status(code: grpc.StatusCode, message: str) -> NeuronTgiError:
    """The error of a call that ended with ``code``; ``GeneratorLostError`` where no answer came back."""
    return _FROM_STATUS.get(code, GeneratorLostError)(message)


# -- requests: up --------------------------------------------------------------------------------------------


def encode_submit(request_id: int, request: GenerationRequest) -> pb.GenerateRequest:
    """Raises ``ValidationError`` where a number does not fit the wire (ids and counts are uint32)."""
    sampling = request.sampling
    grammar = request.grammar
    try:
        submit = pb.Submit(
            request_id=request_id,
            input_ids=request.input_ids,
            prompt_length=request.prompt_length,
            max_new_tokens=request.max_new_tokens,
            sampling=pb.SamplingParams(
                do_sample=sampling.do_sample,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                typical_p=sampling.typical_p,
                repetition_penalty=sampling.repetition_penalty,
                frequency_penalty=sampling.frequency_penalty,
                seed=sampling.seed,
                top_n_tokens=sampling.top_n_tokens,
            ),
            stop_ids=sorted(request.stop_ids),
            prompt_logprobs=request.prompt_logprobs,
            grammar=None if grammar is None else pb.Grammar(kind=grammar.kind, text=grammar.text),
            traceparent=request.traceparent or "",
        )
    except ValueError as error:
        raise ValidationError(f"a number of the request does not fit the wire: {error}") from error
    return pb.GenerateRequest(submit=submit)


def encode_cancel(request_id: int) -> pb.GenerateRequest:
    return pb.GenerateRequest(cancel=pb.Cancel(request_id=request_id))


def decode_submit(submit: pb.Submit) -> GenerationRequest:
    """The request as it was sent, unchecked (``submission.check``); absent sampling means greedy."""
    sent = submit.sampling
    sampling = SamplingParams(
        do_sample=sent.do_sample,
        temperature=sent.temperature,
        top_k=sent.top_k,
        top_p=sent.top_p,
        typical_p=sent.typical_p,
        repetition_penalty=sent.repetition_penalty,
        frequency_penalty=sent.frequency_penalty,
        seed=sent.seed,
        top_n_tokens=sent.top_n_tokens,
    )
    return GenerationRequest(
        input_ids=tuple(submit.input_ids),
        prompt_length=submit.prompt_length,
        max_new_tokens=submit.max_new_tokens,
        sampling=sampling if submit.HasField("sampling") else SamplingParams(),
        stop_ids=frozenset(submit.stop_ids),
        prompt_logprobs=submit.prompt_logprobs,
        grammar=_decode_grammar(submit.grammar) if submit.HasField("grammar") else None,
        traceparent=submit.traceparent or None,
    )


def _decode_grammar(sent: pb.Grammar) -> Grammar:
    kinds: tuple[GrammarKind, ...] = get_args(GrammarKind)
    return Grammar(_known(sent.kind, kinds, "grammar.kind"), sent.text)


# -- events: down --------------------------------------------------------------------------------------------

#: ``STOP_SEQUENCE`` is missing on purpose: stop strings are text, and text stays in the router.
_FINISH: dict[FinishReason, pb.FinishReason] = {
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.EOS_TOKEN: pb.FINISH_REASON_EOS_TOKEN,
}
_FINISH_BACK = {code: reason for reason, code in _FINISH.items()}


def encode_step(step: Step) -> pb.StepEvents:
    """One message for everything a step made."""
    message = pb.StepEvents(free_slots=step.free_slots, queued=step.queued)
    for request_id, event in step.tokens:
        _encode_event(message.tokens.add(request_id=request_id, token_id=event.token_id), event)
    for one in step.passes:
        message.passes.add(**{name: getattr(one, name) for name in _PASS_FIELDS})
    for request_id, error in step.errors:
        message.errors.append(encode_error(request_id, error))
    return message


def encode_error(request_id: int, error: NeuronTgiError) -> pb.RequestError:
    return pb.RequestError(request_id=request_id, error_type=error_word(error), message=str(error))


def _encode_event(sent: pb.TokenEvent, event: TokenEvent) -> None:
    if event.logprob is not None:
        sent.logprob = event.logprob
    if event.top_tokens:
        sent.top_ids.extend([top.token_id for top in event.top_tokens])
        sent.top_logprobs.extend([top.logprob for top in event.top_tokens])
    if event.finish is not None:
        sent.finish = _FINISH[event.finish]
    if event.queue_s is not None:
        sent.queue_s = event.queue_s
    if event.prompt_logprobs is not None:
        sent.prompt_logprobs.extend(math.nan if p is None else p for p in event.prompt_logprobs)


def decode_event(sent: pb.TokenEvent) -> TokenEvent:
    top_tokens = tuple(map(TopToken, sent.top_ids, sent.top_logprobs)) if sent.top_ids else ()
    return TokenEvent(
        token_id=sent.token_id,
        logprob=sent.logprob if sent.HasField("logprob") else None,
        top_tokens=top_tokens,
        finish=_FINISH_BACK[sent.finish] if sent.finish else None,
        queue_s=sent.queue_s if sent.HasField("queue_s") else None,
        prompt_logprobs=_decode_prompt_logprobs(sent.prompt_logprobs) if sent.prompt_logprobs else None,
    )


def _decode_prompt_logprobs(sent: Iterable[float]) -> tuple[float | None, ...]:
    return tuple(None if math.isnan(p) else p for p in sent)


def decode_error(sent: pb.RequestError) -> NeuronTgiError:
    return error_class(sent.error_type)(sent.message)


_PASS_FIELDS = tuple(field.name for field in fields(Pass))


def decode_pass(sent: pb.Pass) -> Pass:
    return Pass(**{name: getattr(sent, name) for name in _PASS_FIELDS})


# -- state ---------------------------------------------------------------------------------------------------

_PHASES: dict[Phase, pb.Phase] = {
    Phase.LOADING: pb.PHASE_LOADING,
    Phase.WARMING_UP: pb.PHASE_WARMING_UP,
    Phase.READY: pb.PHASE_READY,
    Phase.FAILED: pb.PHASE_FAILED,
}
_PHASES_BACK = {code: phase for phase, code in _PHASES.items()}


def encode_status(status: Status) -> pb.HealthResponse:
    return pb.HealthResponse(
        phase=_PHASES[status.phase],
        free_slots=status.free_slots,
        queued=status.queued,
        detail=status.detail,
    )


def decode_status(sent: pb.HealthResponse) -> Status:
    return Status(_PHASES_BACK[sent.phase], sent.free_slots, sent.queued, sent.detail)


def encode_info(info: BackendInfo) -> pb.InfoResponse:
    return pb.InfoResponse(
        batch_size=info.shape.batch_size,
        max_length=info.shape.max_length,
        max_prompt_tokens=info.max_prompt_tokens,
        vocab_size=info.vocab_size,
        prefill_mode=info.prefill_mode,
        output=info.output,
        dtype=info.dtype,
        device=info.device,
        can_score_prompt=info.can_score_prompt,
        max_top_k=info.max_top_k,
    )


def decode_info(sent: pb.InfoResponse) -> BackendInfo:
    """Raises ``UnavailableError`` when the generator names a mode that this router does not know."""
    modes: tuple[PrefillMode, ...] = get_args(PrefillMode)
    outputs: tuple[OutputKind, ...] = get_args(OutputKind)
    return BackendInfo(
        shape=StaticShape(sent.batch_size, sent.max_length),
        max_prompt_tokens=sent.max_prompt_tokens,
        vocab_size=sent.vocab_size,
        prefill_mode=_known(sent.prefill_mode, modes, "prefill_mode"),
        output=_known(sent.output, outputs, "output"),
        dtype=sent.dtype,
        device=sent.device,
        can_score_prompt=sent.can_score_prompt,
        max_top_k=sent.max_top_k,
    )


def _known(word: str, words: tuple[Word, ...], name: str) -> Word:
    for known in words:
        if word == known:
            return known
    raise UnavailableError(
        f"the generator says {name}={word!r}, which is none of {', '.join(words)}: "
        "router and generator are of different versions"
    )
