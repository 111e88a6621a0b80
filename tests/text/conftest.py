"""Three small tokenizers: byte-level BPE, metaspace with byte fallback, WordPiece."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from neuron_server.text.tokenizer import Tokenizer, from_backend

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "A list comprehension returns a new list; a generator yields one item at a time.",
    "Ünïcödé wörds, naïve café, 日本語 and 😀 too.",
] * 4


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    """As GPT-2 and Llama 3; id 0 is ``<|end|>``, and ``<tool> x`` is an added token that is not special."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<tool> é", special=False)])
    return from_backend(backend, special_ids=frozenset({0}), eos_ids=frozenset({0}))


@pytest.fixture(scope="session")
def metaspace() -> Tokenizer:
    """As Llama 2: ``▁`` for spaces, ``<0xE2>`` for unknown bytes, leading space stripped; 1, 2 special."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁Hello",
        "▁world",
        ",",
    ]
    words += [*"abcdefghijklmnopqrstuvwxyzTHé", "▁a", "▁b", "▁the", "!"]
    backend = Backend(
        models.BPE({word: n for n, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return from_backend(backend, special_ids=frozenset({1, 2}), eos_ids=frozenset({2}), bos_id=1)


@pytest.fixture(scope="session")
def word_piece() -> Tokenizer:
    """As BERT: ``##`` joins, and the decoder tidies spaces; id 1 special."""
    words = ["[UNK]", "[SEP]", "hello", "world", "##s", "##ing", "play", ",", "do", "not", "'", "s", "."]
    backend = Backend(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[SEP]"])
    return from_backend(backend, special_ids=frozenset({1}), eos_ids=frozenset({1}))


@pytest.fixture(params=["byte_level", "metaspace"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each vocabulary that can spell any text."""
    return request.getfixturevalue(request.param)
