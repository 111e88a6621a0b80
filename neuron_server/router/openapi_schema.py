"""The answers of all routes, as the API description shows them: field names and order are TGI's.

Nothing is rendered through these classes: the routes write their JSON key by key, tests check that it fits.
A field that may be missing has a default here; one that must be there and may be null has none.
"""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel

from neuron_server.event import FinishReason
from neuron_server.router.documented import INLINE, ShownAs, documented
from neuron_server.router.openai_schema import ChatRequest, CompletionRequest, ToolCall
from neuron_server.router.serde import F32, U32, U64, USIZE
from neuron_server.router.tgi_schema import CompatGenerateRequest

T = TypeVar("T")


class Answer(BaseModel):
    model_config = ConfigDict(defer_build=True)


class NamedAnswer(RootModel[T], Generic[T]):
    model_config = ConfigDict(defer_build=True)


class ErrorResponse(Answer):
    """Why there is no answer: a sentence for people, a word for programs."""

    error: str
    error_type: str


# -- TGI's own routes ----------------------------------------------------------------------------------------


class PrefillToken(Answer):
    """A token of the prompt. The first one has no log-probability: nothing comes before it."""

    id: U32
    text: str
    logprob: F32 | None


class Token(Answer):
    """A generated token; `logprob` in nats, null where the backend does not compute it."""

    id: U32
    text: str
    logprob: F32 | None
    special: bool


class BestOfSequence(Answer):
    """One of the answers that `best_of` did not choose."""

    generated_text: str
    finish_reason: FinishReason
    generated_tokens: U32
    seed: U64 | None = None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] = []


class Details(Answer):
    """How the answer came about. `top_tokens` is there if `top_n_tokens` was asked for."""

    finish_reason: FinishReason
    generated_tokens: U32
    seed: U64 | None = None
    prefill: list[PrefillToken]
    tokens: list[Token]
    best_of_sequences: list[BestOfSequence] | None = None
    top_tokens: list[list[Token]] = []


class GenerateResponse(Answer):
    """A whole answer."""

    generated_text: str
    details: Details | None = None


class StreamDetails(Answer):
    """What the last event of a stream adds."""

    finish_reason: FinishReason
    generated_tokens: U32
    seed: U64 | None = None
    input_length: U32


class StreamResponse(Answer):
    """One event of a stream: one token. Only the last event has `generated_text`."""

    index: U32
    token: Token
    top_tokens: list[Token] = []
    generated_text: str | None = documented(None, "The whole text, in the last event.")
    details: StreamDetails | None = documented(None, "In the last event, if details were asked for.")


class SimpleToken(Answer):
    """A token and the bytes of the input it stands for, `start` to `stop` in UTF-8."""

    id: U32
    text: str
    start: USIZE
    stop: USIZE


class TokenizeResponse(NamedAnswer[list[SimpleToken]]):
    """The tokens of a text, in order."""


class ChatTokenizeResponse(Answer):
    """The prompt that a chat becomes, and its tokens."""

    tokenize_response: TokenizeResponse
    templated_text: str


class Info(Answer):
    """What is served, and the limits that requests must keep."""

    model_id: str
    model_sha: str | None = None
    model_pipeline_tag: str | None = None
    max_concurrent_requests: USIZE
    max_best_of: USIZE
    max_stop_sequences: USIZE
    max_input_tokens: USIZE
    max_total_tokens: USIZE
    validation_workers: USIZE
    max_client_batch_size: USIZE
    router: str
    version: str
    sha: str | None = None
    docker_label: str | None = None
    model_output: str | None = documented(
        None,
        "`logits`, or `tokens` of a model that samples on the device: without log-probabilities, seeds, "
        "penalties and grammars. Null until a generator was ready.",
    )


# -- OpenAI's routes -----------------------------------------------------------------------------------------


class Usage(Answer):
    """Tokens read and written."""

    prompt_tokens: U32
    completion_tokens: U32
    total_tokens: U32


class ChatCompletionTopLogprob(Answer):
    """A likely token at one position."""

    token: str
    logprob: F32


class ChatCompletionLogprob(Answer):
    """The token at one position, and the likeliest ones there."""

    token: str
    logprob: F32
    top_logprobs: list[ChatCompletionTopLogprob]


class ChatCompletionLogprobs(Answer):
    """Log-probabilities, token by token."""

    content: list[ChatCompletionLogprob]


class TextMessage(Answer):
    """An answer in words."""

    role: str = Field(json_schema_extra={"example": "assistant"})
    content: str
    tool_call_id: str | None = None


class ToolCallMessage(Answer):
    """An answer that calls tools."""

    role: str = Field(json_schema_extra={"example": "assistant"})
    tool_calls: list[ToolCall]


class OutputMessage(NamedAnswer[TextMessage | ToolCallMessage]):
    """The model's answer: words or calls."""


class ChatCompletionComplete(Answer):
    """The one choice of a whole answer. `finish_reason` is `stop`, `length` or `stop_sequence`."""

    index: U32
    message: OutputMessage
    logprobs: ChatCompletionLogprobs | None = None
    finish_reason: str


class ChatCompletion(Answer):
    """A whole answer to a chat."""

    id: str
    created: U64
    model: str
    system_fingerprint: str
    choices: list[ChatCompletionComplete]
    usage: Usage


class Function(Answer):
    """A piece of a call: the name comes first, then the arguments, JSON text in pieces."""

    name: str | None = None
    arguments: str


class DeltaToolCall(Answer):
    """What one event adds to a call."""

    index: U32
    id: str
    type: str
    function: Function


class ToolCallDelta(Answer):
    """What one event adds to the calls."""

    role: str = Field(json_schema_extra={"example": "assistant"})
    tool_calls: list[DeltaToolCall]


class ChatCompletionDelta(NamedAnswer[TextMessage | ToolCallDelta]):
    """What one event adds to the answer: words or a piece of a call."""


class ChatCompletionChoice(Answer):
    """The one choice of an event. The last token's event has a `finish_reason`."""

    index: U32
    delta: ChatCompletionDelta
    logprobs: ChatCompletionLogprobs | None = None
    finish_reason: str | None = None


class ChatCompletionChunk(Answer):
    """One event of a streamed chat. The last one, without choices, has the usage if it was asked for."""

    id: str
    created: U64
    model: str
    system_fingerprint: str
    choices: list[ChatCompletionChoice]
    usage: Usage | None = None


class CompletionComplete(Answer):
    """The answer to the prompt number `index`, or in a stream what an event adds to it."""

    index: U32
    text: str
    logprobs: list[F32] | None = None
    finish_reason: str


class CompletionFinal(Answer):
    """The answers to all prompts."""

    id: str
    created: U64
    model: str
    system_fingerprint: str
    choices: list[CompletionComplete]
    usage: Usage


class Chunk(Answer):
    """One event of streamed completions."""

    id: str
    created: U64
    choices: list[CompletionComplete]
    model: str
    system_fingerprint: str


class _TextCompletion(Answer):
    model_config = INLINE

    object: Literal["text_completion"]


_Streamed = Annotated[object, ShownAs(Chunk, _TextCompletion)]
_Whole = Annotated[object, ShownAs(CompletionFinal, _TextCompletion)]


class Completion(NamedAnswer[_Streamed | _Whole]):
    """What both forms have in common: their `object`."""

    model_config = ConfigDict(json_schema_extra={"discriminator": {"propertyName": "object"}})


class ModelInfo(Answer):
    """A served model."""

    id: str
    object: str = Field(json_schema_extra={"example": "model"})
    created: U64
    owned_by: str


class ModelList(Answer):
    """All served models: one."""

    model_config = INLINE

    object: Literal["list"]
    data: list[ModelInfo]


# -- SageMaker -----------------------------------------------------------------------------------------------


class SagemakerRequest(NamedAnswer[CompatGenerateRequest | ChatRequest | CompletionRequest]):
    """The request of another route. The first form that fits is taken."""


class SagemakerResponse(NamedAnswer[list[GenerateResponse] | ChatCompletion | CompletionFinal]):
    """The answer of the route whose request was sent."""


class SagemakerStreamResponse(NamedAnswer[StreamResponse | ChatCompletionChunk | Chunk]):
    """An event of the route whose request was sent."""
