"""Where tokens stand in a text, in bytes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, processors

from neuron_server.text.tokenizer import LONG_TEXT_CHARS, from_backend, from_pretrained

TEXTS = [
    "",
    "a",
    "Hello, world",
    "é a",
    "😀",
    "日本語 und Käse 😀😀 \r\n\t",
    "e\u0301 \u200d\ufeff \x00",
    "ß" * 300,
]


@pytest.mark.parametrize("text", TEXTS)
def test_every_token_is_the_slice_it_says(byte_level, text):
    data = text.encode()
    tokens = list(byte_level.tokenize(text))
    assert [token.id for token in tokens] == byte_level.encode(text)
    assert [data[token.start : token.stop].decode() for token in tokens] == [token.text for token in tokens]
    assert (tokens[-1].stop if tokens else 0) == len(data)


@pytest.mark.parametrize("text", TEXTS)
def test_places_go_forward(tokenizer, text):
    tokens = list(tokenizer.tokenize(text))
    starts = [token.start for token in tokens]
    assert starts == sorted(starts)
    assert all(token.start <= token.stop <= len(text.encode()) for token in tokens)


def test_tokens_that_are_bytes_of_one_character_all_have_it(byte_level):
    places = {(token.text, token.start, token.stop) for token in byte_level.tokenize("a😀")}
    assert places == {("a", 0, 1), ("😀", 1, 5)}


def test_the_tokens_of_a_text_are_made_one_by_one(byte_level):
    """There may be two million; as many objects make the garbage collector stop the program for a second."""
    tokens = byte_level.tokenize("a" * 2 * LONG_TEXT_CHARS)
    assert iter(tokens) is tokens


def test_a_long_text_has_the_same_places(byte_level):
    text = "é " * LONG_TEXT_CHARS
    tokens = list(byte_level.tokenize(text))
    assert [token.id for token in tokens] == byte_level.encode(text)
    assert tokens[-1].stop == 3 * LONG_TEXT_CHARS


def test_a_token_in_the_text_has_its_place_and_an_added_one_has_none():
    backend = Backend(models.WordLevel({"<s>": 0, "a": 1}, unk_token="a"))
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = from_backend(backend, special_ids=frozenset({0}), eos_ids=frozenset({0}))
    assert list(tokenizer.tokenize("é<s>")) == [(0, "", 0, 0), (1, "é", 0, 2), (0, "<s>", 2, 5)]
    assert list(tokenizer.tokenize("é<s>", add_special_tokens=False)) == [(1, "é", 0, 2), (0, "<s>", 2, 5)]


def test_a_tokenizer_written_in_python_knows_no_places():
    slow = SimpleNamespace(
        is_fast=False,
        eos_token_id=0,
        bos_token_id=None,
        added_tokens_decoder={},
        all_special_ids=[0],
        encode=lambda text, add_special_tokens: [ord(c) for c in text],
        decode=None,
        convert_ids_to_tokens=None,
    )
    assert list(from_pretrained(slow).tokenize("é")) == [(233, "", 0, 0)]
