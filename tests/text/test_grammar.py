"""Grammars compiled for real vocabularies: what may come next, what is refused, and what it may cost."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from llguidance import LLParserLimits
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from neuron_server.errors import GenerationError, OverloadedError, ValidationError
from neuron_server.grammar import MAX_GRAMMAR_CHARS, Constraint, Grammar
from neuron_server.text import constraint as constraint_module
from neuron_server.text import grammar as grammar_module
from neuron_server.text.constraint import Compiled
from neuron_server.text.grammar import GrammarCompiler, Vocabulary, load_vocabulary
from neuron_server.text.specification import match
from neuron_server.text.trial_process import TrialProcess

END, ALSO_END = 0, 1
STOPS = frozenset({END, ALSO_END})


def byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|end|>", "<|eot|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(
        ['{"name": "A dog", "age": 12, "ok": true} the quick brown fox aaaa abab'] * 9, trainer
    )
    backend.add_tokens([AddedToken("TOOL", special=False)])
    return backend


def byte_fallback() -> Tokenizer:
    words = [
        "</s>",
        "<s>",
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁a",
        "ab",
        *"abcé{}:,0123",
    ]
    backend = Tokenizer(
        models.BPE({word: n for n, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["</s>", "<s>", "<unk>"])
    return backend


def model_directory(path: Path, backend: Tokenizer | None, eos: list[int]) -> Path:
    path.mkdir(exist_ok=True)
    if backend is not None:
        backend.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text("{}")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    return path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return load_vocabulary(
        model_directory(tmp_path_factory.mktemp("m") / "bpe", byte_level(), [END, ALSO_END])
    )


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return load_vocabulary(model_directory(tmp_path_factory.mktemp("m") / "spm", byte_fallback(), [END]))


@pytest.fixture
async def compiler(vocabulary: Vocabulary) -> AsyncIterator[GrammarCompiler]:
    made = GrammarCompiler(lambda: vocabulary)
    yield made
    await made.close()


def begin(vocabulary: Vocabulary, grammar: Grammar, stops: frozenset[int] = STOPS) -> Constraint:
    return vocabulary.compile(grammar, 0).constraint(stops)


def regex(text: str) -> Grammar:
    return Grammar("regex", text)


def schema(value: object) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def allowed(constraint: Constraint, size: int) -> set[int]:
    row = np.zeros(size, np.float32)
    constraint.mask(row)
    assert set(np.unique(row).tolist()) <= {0.0, -np.inf}
    return set(np.flatnonzero(row == 0.0).tolist())


def follow(vocabulary: Vocabulary, constraint: Constraint, seed: int, tokens: int = 400) -> tuple[str, bool]:
    """A random text, and whether it ended by itself; rows of the model beyond the vocabulary never show."""
    rng, ids = np.random.default_rng(seed), []
    for _ in range(tokens):
        row = rng.standard_normal(vocabulary.tokenizer.vocab_size + 9).astype(np.float32)
        row[END] += 2
        constraint.mask(row)
        token = int(row.argmax())
        assert np.isfinite(row[token])
        assert token < vocabulary.tokenizer.vocab_size
        constraint.advance(token)
        if token in STOPS:
            return vocabulary.tokenizer.decode_bytes(ids).decode(), True
        ids.append(token)
    return vocabulary.tokenizer.decode_bytes(ids).decode(errors="replace"), False


@pytest.mark.parametrize(
    "pattern", ["(ab)+c?", "[A-Z][a-z]{0,8} [0-9]{4}", "a|the quick|é日", r"\d{1,3}(\.\d{1,3}){3}"]
)
@pytest.mark.parametrize("kind", ["vocabulary", "fallback"])
def test_a_text_that_ends_matches_its_regex_as_a_whole(request, kind, pattern):
    known: Vocabulary = request.getfixturevalue(kind)
    for seed in range(8):
        text, ended = follow(known, begin(known, regex(pattern)), seed)
        assert re.fullmatch(pattern, text) if ended else re.match(r".{100}", text)
    assert any(follow(known, begin(known, regex(pattern)), seed)[1] for seed in range(8))


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 3},
        "inner": {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}},
            "required": ["ok"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "inner"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("kind", ["vocabulary", "fallback"])
def test_a_text_that_ends_is_json_that_its_schema_accepts(request, kind):
    known: Vocabulary = request.getfixturevalue(kind)
    for seed in range(8):
        text, ended = follow(known, begin(known, schema(SCHEMA)), seed)
        assert ended
        jsonschema.validate(json.loads(text), SCHEMA)


def test_references_lead_anywhere_in_the_schema(vocabulary: Vocabulary):
    function = {
        "type": "object",
        "properties": {"_name": {"const": "f g"}, "n": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["_name", "n"],
        "additionalProperties": False,
    }
    tools = {
        "$functions": {"f g": function},
        "type": "object",
        "properties": {"function": {"anyOf": [{"$ref": "#/$functions/f%20g"}]}},
        "required": ["function"],
        "additionalProperties": False,
    }
    text, ended = follow(vocabulary, begin(vocabulary, schema(tools)), 1)
    assert ended
    assert json.loads(text)["function"]["_name"] == "f g"


def test_between_two_parts_of_json_stands_at_most_one_blank(vocabulary: Vocabulary):
    tokenizer = vocabulary.tokenizer
    one = schema(
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
            "additionalProperties": False,
        }
    )
    for text, fine in (
        ('{"a":1}', True),
        ('{"a": 1}', True),
        ('{ "a" : 1 }', True),
        ('{"a":  1}', False),
        ('{\n"a":1}', False),
        (' {"a":1}', False),
        ('{"a":1} ', False),
    ):
        matcher = match(tokenizer, one.kind, one.text)
        ids = tokenizer.tokenize_str(text)
        assert (matcher.try_consume_tokens(ids) == len(ids)) is fine, text


def test_a_text_may_end_only_where_it_is_complete(vocabulary: Vocabulary):
    size = vocabulary.tokenizer.vocab_size
    constraint = begin(vocabulary, regex("a{1,2}"))
    [a], [aa] = vocabulary.tokenizer.tokenize_str("a"), vocabulary.tokenizer.tokenize_str("aa")
    assert allowed(constraint, size) == {a, aa}
    with pytest.raises(ValueError, match="before the grammar is satisfied"):
        constraint.advance(END)
    constraint.advance(a)
    assert allowed(constraint, size) == {a, END, ALSO_END}
    constraint.advance(a)
    assert allowed(constraint, size) == {END, ALSO_END}  # nothing else can follow
    constraint.advance(ALSO_END)
    assert allowed(constraint, size) == {END, ALSO_END}
    with pytest.raises(ValueError, match="after the end"):
        constraint.advance(a)


def test_every_stop_id_ends_a_text_whether_the_vocabulary_calls_it_an_end_or_not(vocabulary: Vocabulary):
    size = vocabulary.tokenizer.vocab_size
    [a] = vocabulary.tokenizer.tokenize_str("a")
    assert allowed(begin(vocabulary, regex("a*"), frozenset({ALSO_END})), size) & {END, ALSO_END} == {
        ALSO_END
    }
    beyond = size + 3  # a row that only the model has
    assert beyond in allowed(begin(vocabulary, regex("a*"), frozenset({beyond, 10**6})), size + 9)
    stop_is_text = begin(vocabulary, regex("a+"), frozenset({a}))
    assert a not in allowed(stop_is_text, size)  # it would end the text before the grammar is satisfied


def test_special_tokens_and_rows_without_a_token_are_no_text(vocabulary: Vocabulary):
    size = vocabulary.tokenizer.vocab_size
    anything = allowed(begin(vocabulary, regex("(?s:.+)")), size + 40)
    assert not anything & {END, ALSO_END}
    assert max(anything) < size
    [tool] = [i for i in anything if vocabulary.tokenizer.decode_bytes([i]) == b"TOOL"]
    assert tool  # added, but not special: text like any other
    assert allowed(begin(vocabulary, regex("a")), 50) == set()  # a model with fewer rows than tokens


def test_a_token_that_is_not_allowed_is_refused_and_changes_nothing(vocabulary: Vocabulary):
    size = vocabulary.tokenizer.vocab_size
    constraint = begin(vocabulary, regex("ab"))
    before = allowed(constraint, size)
    for token in (vocabulary.tokenizer.tokenize_str("z")[0], size + 5, END):
        with pytest.raises(ValueError, match=f"token {token}"):
            constraint.advance(token)
    assert allowed(constraint, size) == before


def test_a_fork_goes_its_own_way(vocabulary: Vocabulary):
    size = vocabulary.tokenizer.vocab_size
    first = begin(vocabulary, regex("a[bc]"))
    first.advance(vocabulary.tokenizer.tokenize_str("a")[0])
    second = first.fork()
    second.advance(vocabulary.tokenizer.tokenize_str("b")[0])
    assert allowed(second, size) == {END, ALSO_END}
    assert allowed(first, size) == {vocabulary.tokenizer.tokenize_str(c)[0] for c in "bc"}


def test_digits_and_words_of_a_regex_are_ascii_as_in_tgi(vocabulary: Vocabulary):
    for pattern, text in ((r"\d", "٣"), (r"\w", "é"), (r"[\d\w]", "日")):
        matcher = match(vocabulary.tokenizer, "regex", pattern)
        ids = vocabulary.tokenizer.tokenize_str(text)
        assert matcher.try_consume_tokens(ids) < len(ids)


# -- a grammar that turns out to be too much -----------------------------------------------------------------


@pytest.fixture
def few_states(monkeypatch: pytest.MonkeyPatch) -> None:
    few = LLParserLimits(max_lexer_states=400, verbose_errors=False)
    monkeypatch.setattr("neuron_server.text.specification.limits", lambda: few)


@pytest.mark.usefixtures("few_states")
def test_a_grammar_that_outgrows_the_lexer_ends_with_a_sentence(vocabulary: Vocabulary):
    with pytest.raises(
        ValidationError, match=r"^grammar is too complex to follow: lexer error: too many states"
    ):
        follow(vocabulary, begin(vocabulary, regex("[a-z]{900}")), 0)


@pytest.mark.usefixtures("few_states")
def test_a_text_is_not_failed_by_what_other_texts_taught_the_lexer(vocabulary: Vocabulary):
    """All copies of a matcher share its lexer; here one copy fails, and the other goes on as if alone."""
    shared = vocabulary.compile(regex("[a-z]{900}"), 0)
    victim = shared.constraint(STOPS)
    [a] = vocabulary.tokenizer.tokenize_str("a")
    victim.advance(a)
    with pytest.raises(ValidationError):
        follow(vocabulary, shared.constraint(STOPS), 0)
    assert shared.worn
    alone = begin(vocabulary, regex("[a-z]{900}"))
    alone.advance(a)
    size = vocabulary.tokenizer.vocab_size
    for _ in range(20):
        assert allowed(victim, size) == allowed(alone, size)
        victim.advance(a)
        alone.advance(a)


def test_a_grammar_that_is_slow_to_follow_ends_with_a_sentence(vocabulary: Vocabulary, monkeypatch):
    monkeypatch.setattr(constraint_module, "_ALLOWANCE_S", -1.0)
    with pytest.raises(ValidationError, match="grammar is too slow to follow"):
        allowed(begin(vocabulary, regex("a")), vocabulary.tokenizer.vocab_size)


# -- the compiler --------------------------------------------------------------------------------------------


async def refusal(compiler: GrammarCompiler, grammar: Grammar) -> str:
    with pytest.raises(ValidationError) as caught:
        await compiler(grammar, STOPS)
    return str(caught.value)


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (regex("("), "grammar is not valid: unclosed group"),
        (regex("(?=a)b"), "grammar is not valid: look-around, including look-ahead"),
        (regex(r"[^\s\S]"), "grammar is not valid: no text follows it"),
        (schema({"properties": {"a": {"$ref": "#/x"}}}), "cannot compile regex from schema: Pointer '/x'"),
        (schema({"type": "object", "properties": {"a": False}, "required": ["a"]}), "cannot compile"),
        (Grammar("json_schema", "{"), "cannot compile regex from schema: EOF"),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_a_grammar_is_said(compiler: GrammarCompiler, grammar: Grammar, text: str):
    assert (await refusal(compiler, grammar)).startswith(text)


def chain(length: int) -> dict[str, object]:
    """A reference to a reference to ... a string."""
    links = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(length)}
    return {"properties": {"x": {"$ref": "#/$defs/a0"}}, "$defs": {**links, f"a{length}": {"type": "string"}}}


#: Each of these kills, stalls or bloats the process that compiles it, or would in every step.
ADVERSARIAL = {
    "stack": (schema(chain(3000)), "nested too deeply"),
    "minutes": (schema({"patternProperties": {f"^{n}[a-z]{{1,20}}$": {} for n in range(2000)}}), "too long"),
    "memory": (schema({"properties": {"x": {"type": "integer", "multipleOf": 1000003}}}), "too long to"),
    "forced": (regex("a{1000000}"), "too many expressions"),
    "nested": (regex("(" * 5000 + "a" + ")" * 5000), "nested parentheses"),
    "options": (regex("a?" * 5000 + "a" * 5000), "too many expressions"),
    "huge": (regex("a" * (MAX_GRAMMAR_CHARS + 1)), "at most 131072"),
}  # fmt: skip


@pytest.mark.parametrize("name", ADVERSARIAL)
async def test_an_adversarial_grammar_is_refused_and_the_next_one_compiles(
    compiler: GrammarCompiler, name: str
):
    grammar, text = ADVERSARIAL[name]
    assert text in await refusal(compiler, grammar)
    await compiler(regex("ab"), STOPS)


async def test_the_event_loop_turns_while_a_grammar_is_tried(compiler: GrammarCompiler):
    trying = asyncio.create_task(refusal(compiler, ADVERSARIAL["memory"][0]))
    turns = 0
    while not trying.done():
        turns += 1
        await asyncio.sleep(0.001)
    assert turns > 50


async def test_a_compiled_grammar_is_kept_and_so_is_a_refusal(vocabulary: Vocabulary):
    tried = []

    class Counting(TrialProcess):
        async def bytes_of(self, grammar: Grammar) -> int:
            tried.append(grammar.text)
            return await super().bytes_of(grammar)

    compiler = GrammarCompiler(lambda: vocabulary, Counting)
    first, second = await compiler(regex("a+"), STOPS), await compiler(regex("a+"), frozenset({END}))
    first.advance(vocabulary.tokenizer.tokenize_str("a")[0])
    assert END not in allowed(second, vocabulary.tokenizer.vocab_size)
    for _ in range(3):
        assert "unclosed" in await refusal(compiler, regex("("))
    assert tried == ["a+", "("]
    await compiler.close()


async def test_what_is_kept_is_bounded_in_entries_and_bytes(compiler: GrammarCompiler, monkeypatch):
    for n in range(5):
        await compiler(regex(f"a{n}"), STOPS)
    monkeypatch.setattr(grammar_module, "_CACHE_ENTRIES", 3)
    await compiler(regex("b"), STOPS)
    assert [known.text for known in compiler._known] == ["a3", "a4", "b"]
    monkeypatch.setattr(grammar_module, "_CACHE_BYTES", 1)
    await compiler(regex("c"), STOPS)
    assert [known.text for known in compiler._known] == ["c"]


async def test_a_worn_grammar_is_compiled_anew(compiler: GrammarCompiler):
    await compiler(regex("a+"), STOPS)
    worn = compiler._known[regex("a+")]
    assert isinstance(worn, Compiled)
    worn.spent_s = 5.0
    await compiler(regex("a+"), STOPS)
    assert compiler._known[regex("a+")] is not worn


async def test_no_more_wait_than_may_and_those_who_left_are_forgotten(compiler: GrammarCompiler, monkeypatch):
    monkeypatch.setattr(grammar_module, "_WAITING", 4)
    slow = [
        asyncio.create_task(compiler(schema({"properties": {"x": {"multipleOf": 1000003 + n}}}), STOPS))
        for n in range(4)
    ]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await compiler(regex("late"), STOPS)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    await compiler(regex("late"), STOPS)
    assert list(compiler._known) == [regex("late")]


async def test_a_trial_process_that_does_not_start_is_an_error_each_time(vocabulary: Vocabulary):
    compiler = GrammarCompiler(lambda: vocabulary, lambda: TrialProcess(("/bin/false",)))
    for _ in range(2):
        with pytest.raises(GenerationError, match="could not be compiled"):
            await compiler(regex("a"), STOPS)
    await compiler.close()


async def test_a_trial_process_lost_between_two_grammars_is_replaced_and_nobody_notices(
    compiler: GrammarCompiler,
):
    for pattern in "abc":
        await compiler(regex(pattern), STOPS)
        process = compiler._trials[-1]._process
        assert process is not None
        process.kill()
        if pattern == "b":  # before it is known to be dead, and after
            await process.wait()


async def test_a_grammar_that_its_trial_process_is_lost_with_twice_is_an_error(vocabulary: Vocabulary):
    """Whoever killed it, the kernel for want of memory perhaps: once more would make it worse."""
    answers_once = (
        "import sys; sys.stdin.readline(); print('{\"bytes\": 1}', flush=True); sys.stdin.readline()"
    )
    command = (sys.executable, "-c", answers_once)
    trial = TrialProcess(command)
    assert await trial.bytes_of(regex("a")) == 1
    assert await trial.bytes_of(regex("b")) == 1
    trial._command = ("/bin/false",)
    with pytest.raises(GenerationError):
        await trial.bytes_of(regex("c"))
    await trial.close()


async def test_without_an_end_of_text_there_are_no_grammars(compiler: GrammarCompiler, tmp_path: Path):
    with pytest.raises(ValidationError, match="nothing ends the text"):
        await compiler(regex("a"), frozenset())
    with pytest.raises(ValidationError, match="no end-of-text token"):
        load_vocabulary(model_directory(tmp_path, byte_level(), []))


async def test_a_tokenizer_that_cannot_be_masked_is_a_refusal_every_time(tmp_path: Path):
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.decoder = decoders.WordPiece()
    for number, backend in enumerate((words, None)):
        directory = model_directory(tmp_path / str(number), backend, [0])
        compiler = GrammarCompiler(lambda directory=directory: load_vocabulary(directory))
        for _ in range(2):
            assert (
                await refusal(compiler, regex("a"))
                == "grammar is not supported: the model's tokenizer does not allow it"
            )
        await compiler.close()


async def test_an_end_that_the_tokenizer_lacks_does_not_hide_one_that_it_has(tmp_path: Path):
    assert load_vocabulary(model_directory(tmp_path, byte_level(), [ALSO_END, 99_999])).end_id == ALSO_END
