"""huggingface_hub's InferenceClient: TGI's own routes and the OpenAI ones."""

from importlib.metadata import version

from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError
from report import PROMPT, QUESTION, refused, run


def generate(url: str) -> None:
    client = InferenceClient(url)
    answer = client.text_generation(PROMPT, max_new_tokens=8, details=True, return_full_text=False)
    assert answer.details.generated_tokens == len(answer.details.tokens) > 0
    assert answer.generated_text == client.text_generation(PROMPT, max_new_tokens=8, return_full_text=False)


def stream(url: str) -> None:
    client = InferenceClient(url)
    whole = client.text_generation(PROMPT, max_new_tokens=8, return_full_text=False)
    assert "".join(client.text_generation(PROMPT, max_new_tokens=8, stream=True)) == whole


def chat(url: str) -> None:
    answer = InferenceClient(url).chat_completion(
        QUESTION, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].logprobs.content[0].logprob <= 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def stream_chat(url: str) -> None:
    client = InferenceClient(url)
    whole = client.chat_completion(QUESTION, max_tokens=8, temperature=0)
    chunks = list(
        client.chat_completion(
            QUESTION, max_tokens=8, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def error(url: str) -> None:
    with refused(ValidationError, "temperature"):
        InferenceClient(url).text_generation(PROMPT, temperature=-1.0)


if __name__ == "__main__":
    run(f"huggingface_hub {version('huggingface_hub')}", generate, stream, chat, stream_chat, error)
