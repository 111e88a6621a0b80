"""The bodies of OpenAI's routes as TGI takes them, in TGI's field order.

Looser than TGI in two places, on purpose: ``stop`` may also be one string, and ``response_format`` may also
be spelled as OpenAI spells it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from neuron_server.router.serde import (
    F32,
    U32,
    U64,
    FailFast,
    Lenient,
    Schema,
    Strings,
    Untagged,
    no_variant,
    refused,
)
from neuron_server.router.tgi_schema import GrammarType

#: A JSON value of any shape: nothing here looks into it.
JsonValue = Any

#: Newer clients of OpenAI send the second name.
MaxTokens = Annotated[U32 | None, Field(validation_alias=AliasChoices("max_tokens", "max_completion_tokens"))]

# -- messages ------------------------------------------------------------------------------------------------


class Url(Schema):
    """Where an image is."""

    url: str


class TextChunk(Schema):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class ImageChunk(Schema):
    """An image in a message. Text models see it as the markdown ``![](url)``."""

    type: Literal["image_url"]
    image_url: Url


MessageChunk = Annotated[TextChunk | ImageChunk, Field(discriminator="type")]
MessageContent = str | Annotated[list[MessageChunk], FailFast()]


class FunctionDefinition(Schema):
    """A function that is offered (``arguments`` is its JSON Schema) or was called (its arguments)."""

    description: str | None = None
    name: str
    arguments: JsonValue = Field(validation_alias=AliasChoices("arguments", "parameters"))


class ToolCall(Schema):
    """A call that the model made earlier in the conversation."""

    id: str
    type: str
    function: FunctionDefinition


class Message(Schema):
    """One message: ``content``, or else ``tool_calls``; exactly one of them is not ``None``.

    Content wins when both fit. ``name`` and ``tool_call_id`` are accepted and never shown to the template.
    """

    role: str
    content: Annotated[MessageContent | None, Lenient()] = None
    tool_calls: Annotated[Annotated[list[ToolCall], FailFast()] | None, Lenient()] = None
    name: str | None = None

    @model_validator(mode="after")
    def _has_a_body(self) -> Message:
        if self.content is None and self.tool_calls is None:
            raise no_variant("MessageBody")
        return self


# -- tools ---------------------------------------------------------------------------------------------------


class Tool(Schema):
    """What the model may call."""

    type: str
    function: FunctionDefinition


class FunctionName(Schema):
    """Names one of the request's tools."""

    name: str


class NamedToolChoice(Schema):
    """The one function that must be called."""

    type: Literal["function"]
    function: FunctionName


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """``name`` is set when ``mode`` is ``function``, and only then."""

    mode: Literal["auto", "none", "required", "function"] = "auto"
    name: str | None = None


def _tool_choice(value: object) -> ToolChoice:
    """One of the words (``null`` is ``auto``), or the name of a function, by itself or as OpenAI has it."""
    if value is None or value == "auto":
        return ToolChoice()
    if value == "none" or value == "required":
        return ToolChoice("none" if value == "none" else "required")
    if isinstance(value, str):
        return ToolChoice("function", value)
    try:
        return ToolChoice("function", NamedToolChoice.model_validate(value).function.name)
    except ValidationError:
        raise no_variant("ToolChoice") from None


#: As it stands in a body it is JSON; from here on it is a ``ToolChoice``.
ToolChoiceField = Annotated[
    ToolChoice, PlainValidator(_tool_choice, json_schema_input_type=str | NamedToolChoice | None)
]


# -- requests ------------------------------------------------------------------------------------------------


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


Stop = Annotated[Strings, BeforeValidator(_one_or_many)]


def _response_format(value: object) -> object:
    """OpenAI's spellings as TGI's; everything else is left to ``GrammarType``."""
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object" and "value" not in value:
        return {"type": "json_object", "value": {"type": "object", "properties": {}}}
    if kind == "json_schema" and "value" not in value and "json_schema" in value:
        return {"type": "json_schema", "value": value["json_schema"]}
    return value


ResponseFormat = Annotated[GrammarType | None, BeforeValidator(_response_format)]


class StreamOptions(Schema):
    """``include_usage`` asks for one more chunk, with the counts."""

    include_usage: bool = False


class ChatRequest(Schema):
    """Body of ``/v1/chat/completions`` and ``/chat_tokenize``. ``n`` and ``logit_bias`` have no effect."""

    messages: Annotated[list[Message], FailFast()]
    model: str | None = None
    frequency_penalty: F32 | None = None
    logit_bias: Annotated[list[F32], FailFast()] | None = None
    logprobs: bool | None = None
    top_logprobs: U32 | None = None
    max_tokens: MaxTokens = None
    n: U32 | None = None
    presence_penalty: F32 | None = None
    response_format: ResponseFormat = None
    seed: U64 | None = None
    stop: Stop | None = None
    stream: bool = False
    temperature: F32 | None = None
    top_p: F32 | None = None
    tools: Annotated[list[Tool], FailFast()] | None = None
    tool_prompt: str | None = None
    tool_choice: ToolChoiceField = ToolChoice()
    stream_options: StreamOptions = StreamOptions()


def _not_empty(prompts: list[str]) -> list[str]:
    if not prompts:
        raise refused("Empty array detected. Do not use an empty array for the prompt.")
    return prompts


#: One text or several; a list in any case, of one or more.
Prompt = Annotated[Strings, BeforeValidator(_one_or_many), Untagged("Prompt"), AfterValidator(_not_empty)]


class CompletionRequest(Schema):
    """Body of ``/v1/completions``."""

    prompt: Prompt
    model: str | None = None
    max_tokens: MaxTokens = None
    temperature: F32 | None = None
    top_p: F32 | None = None
    stream: bool = False
    seed: U64 | None = None
    suffix: str | None = None
    repetition_penalty: F32 | None = None
    frequency_penalty: F32 | None = None
    stop: Stop | None = None
