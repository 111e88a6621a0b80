"""Grammars to constraints, through llguidance; what ``serve_generator`` gives the engine as ``compile``.

Why llguidance. Measured with synthetic byte-level vocabularies (BPE trained on 30 MB of program text, as no
published one was at hand) on two cores: time to compile a schema of 3 and one of 50 fields, an IPv4 regex and
an enum of 5,000, and the median time of a mask.

===================  ==========  ==========  =========  ===========  ==============
144k tokens          3 fields    50 fields   regex      enum 5,000   mask
===================  ==========  ==========  =========  ===========  ==============
llguidance 1.9.1     1.4 ms      1.9 ms      1.4 ms     12 ms        7 to 20 us
xgrammar 0.2.8       44 ms       51 ms       2.8 ms     127 ms       1 to 46 us
outlines-core 0.2.14 93 ms       2,580 ms    981 ms     15,600 ms    2 to 19 us
===================  ==========  ==========  =========  ===========  ==============

At 50k tokens: 0.9, 1.7, 1.1, 11 ms; 20, 20, 1.1, 258 ms; 15, 261, 93, 1,067 ms. It lets other threads run
while it compiles and masks, has limits of its own on both, and does not need torch (xgrammar does, at 500 MB
of memory). What its limits miss, ``text.trial`` finds out in a process of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llguidance import LLTokenizer

from neuron_server.errors import OverloadedError, ValidationError
from neuron_server.grammar import Constraint, Grammar, bounded
from neuron_server.models import read_eos_ids
from neuron_server.text.constraint import Compiled
from neuron_server.text.specification import match
from neuron_server.text.trial_process import TrialProcess

logger = logging.getLogger(__name__)

#: Grammars compiled at the same time.
_AT_ONCE = 2
#: Grammars that may wait for it.
_WAITING = 64
_CACHE_ENTRIES = 64
_CACHE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The model's tokens as the library knows them; ``end_id`` is one that ends a text."""

    tokenizer: LLTokenizer
    end_id: int

    def compile(self, grammar: Grammar, compiled_bytes: int) -> Compiled:
        """Without bounds: the grammar has been tried. Raises ``ValueError``."""
        again = partial(match, self.tokenizer, grammar.kind, grammar.text)
        return Compiled(again, self.tokenizer.vocab_size, self.end_id, compiled_bytes=compiled_bytes)


def load_vocabulary(directory: Path, *, trust_remote_code: bool = False) -> Vocabulary:
    """Of a local model directory; at 150k tokens 150 MB and 0.8 s, most of which other threads stand still.

    Raises ``ValidationError`` for a tokenizer whose tokens have no bytes of their own.
    """
    try:
        text = _tokenizer_json(directory, trust_remote_code)
        ends = sorted(read_eos_ids(directory))
        for end_id in ends:
            try:
                return Vocabulary(LLTokenizer(text, eos_token=end_id), end_id)
            except ValueError:
                if end_id == ends[-1]:
                    raise
    except ValidationError:
        raise
    except Exception as error:  # an edge: tokenizer files fail in any way, foreign code included
        logger.warning("grammars are not supported: no use can be made of the tokenizer: %s", error)
        raise ValidationError("grammar is not supported: the model's tokenizer does not allow it") from error
    raise ValidationError("grammar is not supported: the model has no end-of-text token")


def _tokenizer_json(directory: Path, trust_remote_code: bool) -> str:
    file = directory / "tokenizer.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    from transformers import AutoTokenizer  # seconds of imports, and only for models without that file

    pretrained = AutoTokenizer.from_pretrained(  # type: ignore[no-untyped-call]
        str(directory), trust_remote_code=trust_remote_code, local_files_only=True
    )
    if not getattr(pretrained, "is_fast", False):
        raise ValidationError("grammar is not supported: the model has no fast tokenizer")
    return str(pretrained.backend_tokenizer.to_str())


class GrammarCompiler:
    """A ``grammar.Compile``; lives on one asyncio loop.

    Compiled grammars are kept, the least recently used go first; so are the reasons of those that failed,
    which may have cost a second to find. Whoever stops waiting is forgotten.
    """

    def __init__(
        self, load: Callable[[], Vocabulary], trials: Callable[[], TrialProcess] = TrialProcess
    ) -> None:
        self._load = load
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="grammar")
        self._vocabulary: asyncio.Future[Vocabulary] | None = None
        self._trials = [trials() for _ in range(_AT_ONCE)]
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0
        self._known: OrderedDict[Grammar, Compiled | ValidationError] = OrderedDict()

    def prepare(self) -> asyncio.Future[Vocabulary]:
        """Begin to load the vocabulary, which otherwise waits for the first grammar."""
        if self._vocabulary is None:
            self._vocabulary = asyncio.get_running_loop().run_in_executor(self._threads, self._load)
            self._vocabulary.add_done_callback(lambda done: done.cancelled() or done.exception())
        return self._vocabulary

    async def __call__(self, grammar: Grammar, stop_ids: frozenset[int]) -> Constraint:
        """Raises ``ValidationError``, and ``OverloadedError`` when too many wait already."""
        if not stop_ids:
            raise ValidationError("grammar is not supported: nothing ends the text, there are no stop_ids")
        bounded(grammar.text)
        compiled = self._cached(grammar)
        if compiled is None:
            if self._waiting >= _WAITING:
                raise OverloadedError(f"{_WAITING} grammars wait to be compiled")
            self._waiting += 1
            try:
                async with self._free:
                    compiled = self._cached(grammar) or await self._compile(grammar)
            finally:
                self._waiting -= 1
        return compiled.constraint(stop_ids)

    async def close(self) -> None:
        """End the trial processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for trial in self._trials:
            await trial.close()

    async def _compile(self, grammar: Grammar) -> Compiled:
        vocabulary = await asyncio.shield(self.prepare())
        trial = self._trials.pop()
        try:
            compiled_bytes = await trial.bytes_of(grammar)
            loop = asyncio.get_running_loop()
            found: Compiled | ValidationError = await loop.run_in_executor(
                self._threads, vocabulary.compile, grammar, compiled_bytes
            )
        except ValueError as error:
            found = _refusal(grammar, str(error))
        finally:
            self._trials.append(trial)
        self._keep(grammar, found)
        if isinstance(found, ValidationError):
            raise found
        return found

    def _cached(self, grammar: Grammar) -> Compiled | None:
        known = self._known.get(grammar)
        if known is None:
            return None
        if isinstance(known, Compiled) and known.worn:
            del self._known[grammar]
            return None
        self._known.move_to_end(grammar)
        if isinstance(known, ValidationError):
            raise ValidationError(str(known))
        return known

    def _keep(self, grammar: Grammar, found: Compiled | ValidationError) -> None:
        self._known[grammar] = found
        while len(self._known) > 1 and (len(self._known) > _CACHE_ENTRIES or self._bytes() > _CACHE_BYTES):
            self._known.popitem(last=False)

    def _bytes(self) -> int:
        weights = (known.weight for known in self._known.values() if isinstance(known, Compiled))
        return sum(weights) + sum(len(grammar.text) for grammar in self._known)


def _refusal(grammar: Grammar, detail: str) -> ValidationError:
    """TGI's words: its router compiles a schema to a regex, its shards compile that."""
    what = "cannot compile regex from schema" if grammar.kind == "json_schema" else "grammar is not valid"
    return ValidationError(f"{what}: {detail}")
