"""text-generation, TGI's own Python client. It cannot stream chats of TGI 3: see ``stream_chat``."""

from importlib.metadata import version

from report import PROMPT, QUESTION, ClientDefectError, refused, run
from text_generation import Client
from text_generation.errors import ValidationError


def generate(url: str) -> None:
    answer = Client(url).generate(PROMPT, max_new_tokens=8)
    assert answer.details.generated_tokens == len(answer.details.tokens) > 0
    best = Client(url).generate(PROMPT, max_new_tokens=8, best_of=2, do_sample=True)
    assert len(best.details.best_of_sequences) == 1


def stream(url: str) -> None:
    whole = Client(url).generate(PROMPT, max_new_tokens=8).generated_text
    parts = list(Client(url).generate_stream(PROMPT, max_new_tokens=8))
    assert parts[-1].generated_text == whole
    assert "".join(p.token.text for p in parts if not p.token.special) == whole


def chat(url: str) -> None:
    answer = Client(url).chat(QUESTION, max_tokens=8, temperature=0.0)
    assert answer.choices[0].message.content
    assert answer.usage["completion_tokens"] > 0


def stream_chat(url: str) -> None:
    """It cannot read TGI 3's chunks: it wants ``delta.tool_calls`` in each, and no ``[DONE]``."""
    try:
        list(Client(url).chat(QUESTION, max_tokens=8, temperature=0.0, stream=True))
    except AttributeError as defect:  # raised while it reports what it could not read
        if "choices.0.delta.tool_calls" in str(defect.__context__):
            raise ClientDefectError("wants delta.tool_calls, which TGI 3 does not send either") from defect
        raise


def error(url: str) -> None:
    with refused(ValidationError, "`inputs` cannot be empty"):
        Client(url).generate("")


if __name__ == "__main__":
    run(f"text-generation {version('text-generation')}", generate, stream, chat, stream_chat, error)
