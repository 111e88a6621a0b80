"""litellm over its OpenAI providers."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch a price list at import

from importlib.metadata import version

import litellm
from report import PROMPT, QUESTION, refused, run

litellm.telemetry = False


def _text(url: str, **more: object) -> object:
    return litellm.text_completion(
        model="text-completion-openai/tgi", prompt=PROMPT, api_base=f"{url}/v1", api_key="-", max_tokens=8,
        temperature=0, **more,
    )  # fmt: skip


def _chat(url: str, **more: object) -> object:
    more = {"temperature": 0, **more}
    return litellm.completion(
        model="openai/tgi", messages=QUESTION, api_base=f"{url}/v1", api_key="-", max_tokens=8, **more
    )


def generate(url: str) -> None:
    assert _text(url).choices[0].text


def stream(url: str) -> None:
    text = "".join(chunk.choices[0].text or "" for chunk in _text(url, stream=True))
    assert text.startswith(_text(url).choices[0].text)


def chat(url: str) -> None:
    answer = _chat(url)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


def stream_chat(url: str) -> None:
    text = "".join(chunk.choices[0].delta.content or "" for chunk in _chat(url, stream=True))
    assert text == _chat(url).choices[0].message.content


def error(url: str) -> None:
    with refused(litellm.exceptions.BadRequestError, "temperature"):
        _chat(url, temperature=-1)


if __name__ == "__main__":
    run(f"litellm {version('litellm')}", generate, stream, chat, stream_chat, error)
