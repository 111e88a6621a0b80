"""langchain-openai: its completion and chat models."""

from importlib.metadata import version

from langchain_openai import ChatOpenAI, OpenAI
from openai import UnprocessableEntityError
from report import PROMPT, refused, run


def _llm(url: str) -> OpenAI:
    # Its own defaults (top_p 1, n 1 ...) are what TGI refuses for top_p; only what is set is sent here.
    return OpenAI(base_url=f"{url}/v1", api_key="-", model="tgi", max_tokens=8, temperature=0, top_p=0.9)


def _chat(url: str, **settings: object) -> ChatOpenAI:
    settings = {"temperature": 0, **settings}
    return ChatOpenAI(base_url=f"{url}/v1", api_key="-", model="tgi", max_tokens=8, **settings)


def generate(url: str) -> None:
    assert _llm(url).invoke(PROMPT)


def stream(url: str) -> None:
    assert "".join(_llm(url).stream(PROMPT)).startswith(_llm(url).invoke(PROMPT))


def chat(url: str) -> None:
    answer = _chat(url).invoke("Hello")
    assert answer.content
    assert answer.usage_metadata["output_tokens"] > 0


def stream_chat(url: str) -> None:
    assert "".join(c.content for c in _chat(url).stream("Hello")) == _chat(url).invoke("Hello").content


def error(url: str) -> None:
    with refused(UnprocessableEntityError, "temperature"):
        _chat(url, temperature=-1).invoke("Hello")


if __name__ == "__main__":
    run(f"langchain-openai {version('langchain-openai')}", generate, stream, chat, stream_chat, error)
