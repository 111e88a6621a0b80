"""openai: chat and completions, with its own spellings of ``stop`` and ``response_format``."""

import json
from importlib.metadata import version

from openai import OpenAI, UnprocessableEntityError
from report import PROMPT, QUESTION, refused, run

SCHEMA = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}, "required": ["kind"]}


def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="-")


def generate(url: str) -> None:
    answer = client(url).completions.create(
        model="tgi", prompt=[PROMPT, "Hello"], max_tokens=8, temperature=0
    )
    assert sorted(choice.index for choice in answer.choices) == [0, 1]
    assert all(choice.text for choice in answer.choices)
    assert client(url).models.list().data[0].id == answer.model


def stream(url: str) -> None:
    request = {"model": "tgi", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    whole = client(url).completions.create(**request).choices[0].text
    parts = client(url).completions.create(**request, stream=True)
    assert "".join(part.choices[0].text for part in parts).startswith(whole)


def chat(url: str) -> None:
    create = client(url).chat.completions.create
    answer = create(model="tgi", messages=QUESTION, max_tokens=8, temperature=0, stop="\n\n\n")
    assert answer.choices[0].message.content
    constrained = create(
        model="tgi",
        messages=QUESTION,
        max_tokens=64,
        response_format={"type": "json_schema", "json_schema": {"name": "kind", "schema": SCHEMA}},
    )
    assert json.loads(constrained.choices[0].message.content)["kind"] in ("a", "b")
    tool = {"type": "function", "function": {"name": "pick", "parameters": SCHEMA}}
    called = create(
        model="tgi", messages=QUESTION, tools=[tool], tool_choice="required", max_tokens=64
    ).choices[0]
    assert json.loads(called.message.tool_calls[0].function.arguments)["kind"] in ("a", "b")


def stream_chat(url: str) -> None:
    request = {"model": "tgi", "messages": QUESTION, "max_tokens": 8, "temperature": 0}
    whole = client(url).chat.completions.create(**request)
    chunks = list(
        client(url).chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def error(url: str) -> None:
    with refused(UnprocessableEntityError, "temperature"):
        client(url).chat.completions.create(model="tgi", messages=QUESTION, temperature=-1, stream=True)


if __name__ == "__main__":
    run(f"openai {version('openai')}", generate, stream, chat, stream_chat, error)
