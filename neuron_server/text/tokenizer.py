"""The model's tokenizer: text to ids, ids to text, and the ids that mean something special."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers  # type: ignore[import-untyped]
from tokenizers import decoders

from neuron_server.errors import ModelError
from neuron_server.models import read_eos_ids
from neuron_server.text.offsets import TextToken, place
from neuron_server.text.stream import ByteStream, TextStream, WindowStream

logger = logging.getLogger(__name__)

#: ``Any``: transformers ships no types, and its tokenizer classes share no useful base for the generic API.
PretrainedTokenizer = Any

#: Beyond this many characters ``encode`` takes the call that lets other threads run (at 4 MB/s: 2 ms).
LONG_TEXT_CHARS = 8192


@dataclass(slots=True)
class Tokenizer:
    """Encodes prompts and decodes generations. Safe to use from several threads.

    ``special_ids``: ids shown as their literal with ``special: true`` and left out of the generated text.
    ``eos_ids``: every id that ends a generation. ``bos_id``: what begins a text, if the model has such an id.
    """

    special_ids: frozenset[int]
    eos_ids: frozenset[int]
    bos_id: int | None
    _encode: Callable[[str, bool], list[int]]
    _spans: Callable[[str, bool], Iterable[tuple[int, tuple[int, int]]]]
    _decode: Callable[[Sequence[int]], str]
    _literal: Callable[[int], str | None]
    _byte_level: bool = False
    _bytes: dict[int, bytes] = field(default_factory=dict)
    _texts: dict[int, str] = field(default_factory=dict)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of ``text``; never truncated, never padded."""
        return self._encode(text, add_special_tokens)

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> Iterator[TextToken]:
        """The ids with their places in ``text``; 0, 0 and no text from a tokenizer written in Python."""
        return place(text, self._spans(text, add_special_tokens))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens."""
        return self._decode([i for i in ids if i not in self.special_ids])

    def token_text(self, token_id: int) -> str:
        """Text of one token by itself: the literal of a special one, the decoded text of any other."""
        text = self._texts.get(token_id)
        if text is None:
            special = token_id in self.special_ids
            text = (self._literal(token_id) or "") if special else self._decode([token_id])
            self._texts[token_id] = text
        return text

    def stream(self, prompt: Sequence[int] = ()) -> TextStream:
        """A fresh stream of text that continues ``prompt``."""
        if self._byte_level:
            return ByteStream(self._token_bytes)
        return WindowStream(self._decode, [i for i in prompt[-64:] if i not in self.special_ids])

    def _token_bytes(self, token_id: int) -> bytes:
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = _byte_level_bytes(self._literal(token_id) or "")
        return found


def load(path: str | Path, *, trust_remote_code: bool = False) -> Tokenizer:
    """Load the tokenizer of a local model directory through transformers; never touches the network.

    Raises ``ModelError`` when there is none, or when it cannot be read.
    """
    from transformers import AutoTokenizer  # seconds of imports: only the program that needs it pays

    directory = Path(path)
    if not directory.is_dir():
        raise ModelError(f"tokenizer path {str(path)!r} is not a directory", rule="model_missing")
    try:
        pretrained = AutoTokenizer.from_pretrained(  # type: ignore[no-untyped-call]
            str(directory), trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # an edge: tokenizer files fail in any way, foreign code included
        raise ModelError(f"no usable tokenizer in {str(path)!r}: {error}", rule="model") from error
    return from_pretrained(pretrained, eos_ids=read_eos_ids(directory))


def from_pretrained(pretrained: PretrainedTokenizer, *, eos_ids: frozenset[int] = frozenset()) -> Tokenizer:
    """Wrap a transformers tokenizer; without ``eos_ids`` its own EOS token is the only one."""
    if not eos_ids and pretrained.eos_token_id is not None:
        eos_ids = frozenset({int(pretrained.eos_token_id)})
    if getattr(pretrained, "is_fast", False):
        return from_backend(
            pretrained.backend_tokenizer,
            special_ids=_special_ids(pretrained),
            eos_ids=eos_ids,
            bos_id=pretrained.bos_token_id,
        )
    logger.warning("the model has no fast tokenizer; its Python tokenizer is used, which is much slower")

    def encode(text: str, add_special_tokens: bool) -> list[int]:
        return [int(i) for i in pretrained.encode(text, add_special_tokens=add_special_tokens)]

    def spans(text: str, add_special_tokens: bool) -> Iterable[tuple[int, tuple[int, int]]]:
        return [(i, (0, 0)) for i in encode(text, add_special_tokens)]

    def decode(ids: Sequence[int]) -> str:
        return str(pretrained.decode(list(ids), clean_up_tokenization_spaces=False))

    return Tokenizer(
        special_ids=_special_ids(pretrained),
        eos_ids=eos_ids,
        bos_id=pretrained.bos_token_id,
        _encode=encode,
        _spans=spans,
        _decode=decode,
        _literal=pretrained.convert_ids_to_tokens,
    )


def from_backend(
    backend: tokenizers.Tokenizer,
    *,
    special_ids: frozenset[int],
    eos_ids: frozenset[int],
    bos_id: int | None = None,
) -> Tokenizer:
    """Wrap a ``tokenizers`` tokenizer. Truncation and padding written in its file are switched off."""
    backend.no_truncation()
    backend.no_padding()

    def encode(text: str, add_special_tokens: bool) -> list[int]:
        # Only the batch calls release the GIL; without that a long prompt stops every stream, thread or not.
        if len(text) > LONG_TEXT_CHARS:
            ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        else:
            ids = backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def spans(text: str, add_special_tokens: bool) -> Iterable[tuple[int, tuple[int, int]]]:
        if len(text) > LONG_TEXT_CHARS:
            encoding = backend.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        else:
            encoding = backend.encode(text, add_special_tokens=add_special_tokens)
        return zip(encoding.ids, encoding.offsets, strict=True)

    def decode(ids: Sequence[int]) -> str:
        return str(backend.decode(ids, skip_special_tokens=False))

    return Tokenizer(
        special_ids=special_ids,
        eos_ids=eos_ids,
        bos_id=bos_id,
        _encode=encode,
        _spans=spans,
        _decode=decode,
        _literal=backend.id_to_token,
        _byte_level=isinstance(backend.decoder, decoders.ByteLevel),
    )


def _special_ids(pretrained: PretrainedTokenizer) -> frozenset[int]:
    """The named special tokens and every added token marked special, as TGI's reference shard counts them."""
    added = {i for i, token in pretrained.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(pretrained.all_special_ids))


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's stand-in for each byte: itself where printable, else the next code point from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(256 + n): byte for n, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    """Bytes of a byte-level token; one with any character outside the alphabet is plain text."""
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:
        return token.encode()
