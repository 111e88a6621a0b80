"""Loading a model directory's tokenizer, and what its ids mean."""

from __future__ import annotations

import json
import threading
from types import MappingProxyType

import pytest

from neuron_server.errors import ModelError
from neuron_server.text import tokenizer as module
from neuron_server.text.tokenizer import from_pretrained, load


class SlowTokenizer:
    """The generic API of transformers, over characters; ids are code points, 0 is ``</s>``."""

    is_fast = False
    eos_token_id, bos_token_id = 0, None
    all_special_ids = (0,)
    added_tokens_decoder = MappingProxyType({})

    def encode(self, text, add_special_tokens):
        return [ord(c) for c in text] + ([0] if add_special_tokens else [])

    def decode(self, ids, clean_up_tokenization_spaces):
        return "".join("</s>" if i == 0 else chr(i) for i in ids)

    def convert_ids_to_tokens(self, i):
        return "</s>" if i == 0 else chr(i)


@pytest.fixture
def directory(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({c: n for n, c in enumerate(["<s>", "</s>", "<|im_end|>", *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.enable_truncation(4)
    backend.enable_padding(length=16, pad_token="<s>")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_end|>"],
    ).save_pretrained(tmp_path)
    return tmp_path


def test_truncation_and_padding_of_the_file_are_switched_off(directory):
    assert len(load(directory).encode("Hello world")) == 11


def test_eos_ids_come_from_the_generation_config_first(directory):
    assert load(directory).eos_ids == {1}
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": 7}))
    assert load(directory).eos_ids == {7}
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    assert load(directory).eos_ids == {1, 2}


def test_special_ids_include_added_special_tokens(directory):
    tokenizer = load(directory)
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.token_text(2) == "<|im_end|>"
    assert tokenizer.bos_id == 0


def test_a_directory_without_a_tokenizer_is_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match=r"is not a directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load(tmp_path)


def test_a_corrupt_generation_config_is_named(directory):
    (directory / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be read"):
        load(directory)


def test_a_slow_tokenizer_works_through_the_generic_api():
    tokenizer = from_pretrained(SlowTokenizer())
    assert tokenizer.eos_ids == tokenizer.special_ids == {0}
    assert tokenizer.encode("añ") == [97, 241, 0]
    assert tokenizer.encode("a", add_special_tokens=False) == [97]
    stream = tokenizer.stream([97])
    assert [stream.push(ord(c)) for c in "b😀"] == ["b", "😀"]
    assert tokenizer.token_text(0) == "</s>"


def test_ids_without_a_token_have_no_text(byte_level, metaspace):
    for tokenizer in (byte_level, metaspace):
        assert tokenizer.token_text(999_999) == ""
        assert tokenizer.stream().push(999_999) == ""


def test_a_long_prompt_gives_the_same_ids_as_a_short_one(byte_level, monkeypatch):
    tokenizer, text = byte_level, "the lazy dog " * 50
    short = tokenizer.encode(text)
    monkeypatch.setattr(module, "LONG_TEXT_CHARS", 10)
    assert tokenizer.encode(text) == short


def test_encoding_a_long_prompt_lets_other_threads_run(byte_level):
    tokenizer, text = byte_level, "the lazy dog and the quick brown fox " * 20_000
    worker = threading.Thread(target=tokenizer.encode, args=(text,))
    ticks = 0
    worker.start()
    while worker.is_alive():
        ticks += 1
    assert ticks > 1000
