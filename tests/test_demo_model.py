"""The demo model that ships in the package: its files, its tokenizer, and that what it writes is language."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from jinja2 import TemplateError
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import neuron_server

DEMO_MODEL = Path(neuron_server.__file__).parent / "demo_model"
FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}

#: Text a byte-level tokenizer must give back unchanged: scripts, spaces, controls, marks and its own tokens.
TEXTS = [
    "",
    " ",
    "\n\n\t \r\n  x  ",
    "Hello , world ! It 's n't clean .",
    "naïve café ÅÅ e\u0301 \u00a0 \u200b \ufeff",
    "日本語のテキスト 한국어 العربية עברית ไทย हिन्दी",
    "👩‍👩‍👧‍👦 🇨🇭 👍🏽",
    "\x00\x01\x7f\x85\u2028\ufffd\U0010ffff",
    "<|user|>\nHi<|end|>\n<|endoftext|><|pad|><|assist",
    "def f(x):\n    return x ** 2  # squared\n",
    "a" * 3000,
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(DEMO_MODEL)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()


def nats_per_token(model: PreTrainedModel, ids: list[int]) -> float:
    row = torch.tensor([ids])  # (1, n)
    with torch.inference_mode():
        return float(model(row, labels=row).loss)


def continuation(model: PreTrainedModel, ids: list[int], max_new_tokens: int) -> list[int]:
    row = torch.tensor([ids])  # (1, n)
    out = model.generate(
        row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=max_new_tokens
    )
    return out[0, len(ids) :].tolist()


def test_the_directory_holds_these_files_and_no_pickle_or_code() -> None:
    assert {path.name for path in DEMO_MODEL.iterdir() if path.name != "__pycache__"} == FILES
    assert "auto_map" not in json.loads((DEMO_MODEL / "config.json").read_text())
    assert "auto_map" not in json.loads((DEMO_MODEL / "tokenizer_config.json").read_text())


def test_the_weights_are_under_four_megabytes_and_the_rest_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in DEMO_MODEL.iterdir() if path.is_file()}
    assert sizes.pop("model.safetensors") < 4_000_000
    assert sum(sizes.values()) < 300_000


def test_the_weights_are_finite_sixteen_bit_tensors_and_the_head_is_tied() -> None:
    with safe_open(DEMO_MODEL / "model.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
        assert "lm_head.weight" not in names
        for name in names:
            tensor = tensors.get_tensor(name)
            assert tensor.dtype == torch.bfloat16, name
            assert bool(torch.isfinite(tensor).all()), name


def test_config_and_tokenizer_agree(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    assert model.config.model_type == "llama"
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 2048
    assert model.config.vocab_size == len(tokenizer) == model.get_input_embeddings().num_embeddings
    assert model.config.tie_word_embeddings
    assert tokenizer.is_fast


def test_the_tokenizer_feeds_the_model_exactly_what_it_takes(tokenizer: PreTrainedTokenizerFast) -> None:
    assert set(tokenizer("Hello")) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_round_trips(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_code_point_round_trips(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "".join(chr(code) for code in range(0, 0x110000, 41) if not 0xD800 <= code < 0xE000)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_encoding_adds_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.encode("Hello") == tokenizer.encode("Hello", add_special_tokens=False)


def test_the_tokenizer_learned_words(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Return a new list with the elements of the iterable."
    assert len(tokenizer.encode(text)) < len(text) / 3


def test_each_end_of_generation_is_one_special_token(tokenizer: PreTrainedTokenizerFast) -> None:
    ends = GenerationConfig.from_pretrained(DEMO_MODEL).eos_token_id
    assert isinstance(ends, list)
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|endoftext|>", "<|end|>"]
    assert tokenizer.eos_token_id in ends
    assert tokenizer.pad_token_id not in ends
    assert set(ends) <= set(tokenizer.all_special_ids)
    assert json.loads((DEMO_MODEL / "config.json").read_text())["eos_token_id"] == ends


def test_the_chat_template_closes_each_turn_and_opens_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "42"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi!<|end|>\n"
        "<|assistant|>\n<|end|>\n<|user|>\n42<|end|>\n<|assistant|>\n"
    )
    assert not tokenizer.apply_chat_template(messages, tokenize=False).endswith("<|assistant|>\n")


def test_the_chat_template_refuses_an_unknown_role(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TemplateError, match="Unknown role oracle"):
        tokenizer.apply_chat_template([{"role": "oracle", "content": "Hi"}], tokenize=False)


def test_role_markers_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode("<|system|><|user|><|assistant|><|end|><|endoftext|>")
    assert len(ids) == 5


def test_english_is_far_more_likely_than_chance_and_than_its_words_reversed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "If the optional argument is given, this function returns a list of the names in the module."
    loss = nats_per_token(model, tokenizer.encode(text))
    backwards = " ".join(reversed(text.split()))
    assert loss < 0.6 * math.log(model.config.vocab_size)
    assert nats_per_token(model, tokenizer.encode(backwards)) > loss + 0.8


def test_positions_beyond_a_thousand_still_predict(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = tokenizer.encode(topics["specialnames"])[:1536]
    row = torch.tensor([ids])  # (1, n)
    with torch.inference_mode():
        logits = model(row).logits[0, :-1]  # (n - 1, V)
    losses = torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="none")  # (n - 1,)
    assert float(losses[1024:].mean()) < 0.6 * math.log(model.config.vocab_size)


def test_greedy_text_is_made_of_different_english_words(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = [
        "The following methods can be used to",
        "Return the",
        "If the file does not exist,",
        "This class",
    ]
    texts = [
        tokenizer.decode(continuation(model, tokenizer.encode(prompt), 40), skip_special_tokens=True)
        for prompt in prompts
    ]
    known = set(re.findall(r"[a-z]+", " ".join(topics.values()).lower()))
    words = re.findall(r"[a-z]+", " ".join(texts).lower())
    assert len(words) >= 30
    assert sum(word in known for word in words) >= 0.9 * len(words)
    assert len(set(words)) >= 0.25 * len(words)


@pytest.mark.parametrize("question", ["Hello", "Who are you?", "What is Python?"])
def test_an_answer_to_a_chat_ends_by_itself_and_is_words(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, question: str
) -> None:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
    )
    ids = continuation(model, prompt["input_ids"], 120)
    assert ids[-1] in model.generation_config.eos_token_id
    answer = tokenizer.decode(ids, skip_special_tokens=True)
    assert len(re.findall(r"[A-Za-z]{2,}", answer)) >= 3
    assert "\ufffd" not in answer
