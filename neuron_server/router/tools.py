"""Tools of a chat: which are offered, the grammar that makes the model call one, and the call it wrote.

The rules, the shape of the schema and the texts of refusals are TGI's. Ours goes further in three points:
the envelope is required (by TGI's schema ``{}``, or ``5``, would do as well), a tool's own ``$defs`` are
kept, and references inside its parameters still lead to them.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from neuron_server.errors import ToolError
from neuron_server.router.openai_schema import ChatRequest, FunctionDefinition, Message, Tool
from neuron_server.router.tgi_schema import GrammarType
from neuron_server.router.tool_stream import ToolStream

#: What the model calls, when it may choose, to answer in words.
NO_TOOL = "no_tool"

#: How much of an answer that is no call is quoted in the refusal, characters.
_MAX_QUOTED = 500

_STRING_OR_SPACE = re.compile(r'("(?:[^"\\]|\\.)*")|\s+', re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """``tools`` are offered to the model (``no_tool`` among them when ``optional``) and ``grammar`` makes it
    call one of them."""

    tools: tuple[Tool, ...]
    grammar: GrammarType
    optional: bool

    def declined(self, name: str | None) -> bool:
        """Whether calling ``name`` means not to call any of the request's tools."""
        return self.optional and name == NO_TOOL


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """``arguments`` is a JSON object as text, without white space."""

    name: str
    arguments: str


def choose(request: ChatRequest) -> ToolPlan | None:
    """What the request's ``tools`` and ``tool_choice`` ask for; ``None`` for an ordinary chat.

    Raises ``ToolError`` for a choice that is not there and for tools beside a ``response_format``.
    """
    if request.tools is None:
        return None
    if request.response_format is not None:
        raise ToolError("Grammar and tools are mutually exclusive")
    choice, tools = request.tool_choice, tuple(request.tools)
    if choice.mode == "auto":
        tools = (*(tool for tool in tools if tool.function.name != NO_TOOL), _no_tool())
    elif choice.mode == "none":
        tools = ()
    elif choice.mode == "function":
        named = next((tool for tool in tools if tool.function.name == choice.name), None)
        if named is None:
            raise ToolError(f"Tool with name {choice.name} not found")
        tools = (named,)
    if not tools:
        return None
    return ToolPlan(tools, GrammarType(type="json", value=_schema(tools)), choice.mode == "auto")


def parse_call(text: str) -> FunctionCall:
    """The call in a whole answer; raises ``ToolError`` where there is none, or only the beginning of one."""
    stream = ToolStream()
    try:
        delta = stream.feed(text)
        if delta is None or delta.name is None or not stream.complete:
            raise unparsable(text, "the call is not complete")
        orjson.loads(delta.arguments)
    except ValueError as error:
        raise unparsable(text, str(error)) from error
    return FunctionCall(delta.name, _STRING_OR_SPACE.sub(r"\1", delta.arguments))


def unparsable(text: str, reason: str) -> ToolError:
    """The error for an answer that is not a whole call."""
    quoted = orjson.dumps(text[:_MAX_QUOTED]).decode()
    return ToolError(f"Failed to parse generated text: {reason}: {quoted}")


def next_call_id(messages: Sequence[Message]) -> str:
    """One above the largest id of the calls in ``messages``; a UUID where those are not all integers."""
    ids = [call.id for message in messages if message.content is None for call in message.tool_calls or ()]
    if not all(re.fullmatch(r"[0-9]{1,20}", one) for one in ids):
        return str(uuid.uuid4())
    return str(max(map(int, ids), default=-1) + 1)


def _no_tool() -> Tool:
    """It takes no arguments: what the model wrote into them would be thrown away."""
    return Tool(
        type="function",
        function=FunctionDefinition(
            name=NO_TOOL,
            description="Answer the user in plain words; no function is called.",
            arguments={"type": "object", "properties": {}, "required": []},
        ),
    )


# -- the schema (dict[str, Any] throughout: JSON Schemas are any JSON) ---------------------------------------


def _schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """The envelope ``{"function": F}`` with F one of the functions; of two with one name the last counts."""
    functions = {tool.function.name: _function_schema(tool.function) for tool in tools}
    return {
        "$functions": functions,
        "type": "object",
        "properties": {"function": {"anyOf": [{"$ref": _pointer(name)} for name in functions]}},
        "required": ["function"],
        "additionalProperties": False,
    }


def _function_schema(function: FunctionDefinition) -> dict[str, Any]:
    """The arguments' object with the name in front of them, as ``_name``."""
    properties: dict[str, Any] = {"_name": {"type": "string", "const": function.name}}
    required: list[Any] = ["_name"]
    schema: dict[str, Any] = {
        "description": function.description or "",
        "type": "object",
        "properties": properties,
        "required": required,
    }
    parameters = _rebase(function.arguments, _pointer(function.name))
    if isinstance(parameters, dict):
        if isinstance(own := parameters.get("properties"), dict):
            properties.update((key, value) for key, value in own.items() if key != "_name")
        if isinstance(own := parameters.get("required"), list):
            # as TGI's: a key without a property could not be written, so it is not asked for
            required += [key for key in own if isinstance(key, str) and key in properties and key != "_name"]
        schema["additionalProperties"] = parameters.get("additionalProperties") == "true"
        schema |= {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
    return schema


def _pointer(name: str) -> str:
    """The reference to a function's schema; names may hold anything."""
    return "#/$functions/" + quote(name.replace("~", "~0").replace("/", "~1"), safe="")


def _rebase(value: Any, root: str) -> Any:
    """``value`` with its references into itself leading to ``root`` instead of the top of the document.

    A body is not nested deeply enough for this to be a problem.
    """
    if isinstance(value, list):
        return [_rebase(item, root) for item in value]
    if not isinstance(value, dict):
        return value
    rebased = {key: _rebase(item, root) for key, item in value.items()}
    reference = rebased.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        rebased["$ref"] = root + reference[1:]
    return rebased
