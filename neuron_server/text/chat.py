"""Chat templates: a conversation as the text a model was trained on.

The dialect is that of transformers, which model authors write for: white space around blocks goes, Python's
methods are there, ``break`` and ``continue`` too. TGI's minijinja keeps that white space and has fewer
methods, otherwise what renders there renders here to the same text.

A template comes with the model, never with a request, and runs in a sandbox: no attribute that begins with an
underscore, no changing of what it is given, no imports or files. Bounded are the size of the template and of
the text it makes, the rounds of all its loops together, their processor time (looked at once a round), and
``*`` and ``**`` on anything. Not bounded is what one single filter or method makes of its arguments, as in
``'x'.ljust(10 ** 9)``: who chooses the model is trusted that far, as with its weights.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from neuron_server.errors import ChatTemplateError

#: The longest known templates have some 20,000 characters.
MAX_TEMPLATE_CHARS = 1_000_000
#: Several times the default ``--payload-limit``.
MAX_RENDERED_CHARS = 16_000_000
#: Rounds of all loops together; the messages of a body at the default limit are 80,000 at most.
MAX_LOOP_ROUNDS = 1_000_000
MAX_LOOP_SECONDS = 10.0

_MAX_BITS = 4096
#: Behind the text that is to be continued while it is rendered; from Unicode's private area.
_END_MARK = "\ue1f7\ue2f6\ue3f5"
#: A vision model's way to the text of the first message, whose content is one text here (as in TGI).
_FIRST_TEXT = ("messages[0]['content'][0]['text']", "messages[0]['content']")

#: A JSON value (``Any``: tools are whatever the client declared).
Json = Any


class _Budget(threading.local):
    """What the rendering of this thread may still do."""

    rounds = 0
    until_s = 0.0

    def begin(self) -> None:
        self.rounds = MAX_LOOP_ROUNDS
        self.until_s = time.thread_time() + MAX_LOOP_SECONDS

    def spend(self) -> None:
        self.rounds -= 1
        if self.rounds < 0:
            raise SecurityError(f"the template's loops took more than {MAX_LOOP_ROUNDS} rounds")
        if time.thread_time() > self.until_s:
            raise SecurityError(f"the template's loops took more than {MAX_LOOP_SECONDS:g} s")


_budget = _Budget()


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with bounds on what arithmetic makes out of little."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """``*`` and ``**`` of any two values."""
        if operator == "*":
            sized, times = (left, right) if hasattr(left, "__len__") else (right, left)
            if (
                hasattr(sized, "__len__")
                and isinstance(times, int)
                and len(sized) * times > MAX_RENDERED_CHARS
            ):
                raise SecurityError(f"the template repeats something to more than {MAX_RENDERED_CHARS} items")
        if isinstance(left, int) and isinstance(right, int):
            grows_by = (
                left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            )
            if grows_by > _MAX_BITS:
                raise SecurityError(f"the template makes a number of more than {_MAX_BITS} bits")
        return super().call_binop(context, operator, left, right)

    def spend_round(self) -> str:
        """Called at the start of every round of every loop."""
        _budget.spend()
        return ""


class _Generation(Extension):
    """``{% generation %}`` marks what to train on; for rendering only its contents count."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # never changed

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Renders conversations, in any thread. ``uses_tools``: the template shows the tools itself."""

    uses_tools: bool
    _template: jinja2.Template
    _special_tokens: Mapping[str, str]

    def render(self, messages: Sequence[Mapping[str, str]], tools: Sequence[Json] | None = None) -> str:
        """The prompt for the message that comes next, or that goes on where the last one is the assistant's.

        Each message has a ``role`` and a ``content``. Raises ``ChatTemplateError``.
        """
        continued = bool(messages) and messages[-1]["role"] == "assistant"
        if continued:
            last = messages[-1]
            messages = [*messages[:-1], {**last, "content": last["content"] + _END_MARK}]
        text = self._render(messages, tools)
        return _cut(text, last["content"]) if continued else text

    def _render(self, messages: Sequence[Mapping[str, str]], tools: Sequence[Json] | None) -> str:
        _budget.begin()
        pieces: list[str] = []
        room = MAX_RENDERED_CHARS
        try:
            for piece in self._template.generate(
                messages=list(messages),
                tools=None if tools is None else list(tools),
                add_generation_prompt=True,
                **self._special_tokens,
            ):
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    raise SecurityError(f"the template made more than {MAX_RENDERED_CHARS} characters")
        except Exception as error:  # an edge: a template is foreign code and fails in any way
            raise ChatTemplateError(_told(error)) from error
        return "".join(pieces)


def compile_template(
    text: str, *, bos_token: str | None = None, eos_token: str | None = None
) -> ChatTemplate:
    """The template ``text``, where a token that is ``None`` is undefined; raises ``ChatTemplateError``."""
    if len(text) > MAX_TEMPLATE_CHARS:
        raise ChatTemplateError(f"it has {len(text)} characters, more than {MAX_TEMPLATE_CHARS}")
    environment = _environment()
    try:
        tree = environment.parse(text.replace(*_FIRST_TEXT))
        uses_tools = "tools" in meta.find_undeclared_variables(tree)
        for loop in tree.find_all(nodes.For):
            tick = nodes.Call(nodes.EnvironmentAttribute("spend_round"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(tick, lineno=loop.lineno))
        template = environment.from_string(tree)
    except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
        raise ChatTemplateError(_told(error)) from error
    tokens = {"bos_token": bos_token, "eos_token": eos_token}
    return ChatTemplate(uses_tools, template, {k: v for k, v in tokens.items() if v is not None})


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Json,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers: Jinja's own would escape for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _cut(text: str, content: str) -> str:
    """``text`` up to the end of the last message, without the white space there."""
    end = text.rfind(_END_MARK)
    if end < 0:  # the template did something with the content: look for what it was, as TGI does
        end = text.rfind(content)
        end = len(text) if end < 0 else end + len(content)
    return text[:end].replace(_END_MARK, "").rstrip()


def _told(error: Exception) -> str:
    """What is wrong, in one line."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"{error.message} (line {error.lineno} of the template)"
    if isinstance(error, jinja2.TemplateError):
        return error.message or type(error).__name__
    return f"{type(error).__name__}: {error}".replace(_END_MARK, "")
