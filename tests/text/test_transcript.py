"""Token texts and the generated text agree, whatever ends the text."""

from __future__ import annotations

from neuron_server.text.transcript import Transcript


def push_all(transcript, ids):
    out = []
    for n, i in enumerate(ids):
        out.append(transcript.push(i, last=n == len(ids) - 1))
        if out[-1].stopped:
            break
    return out


def test_a_special_token_shows_its_literal_and_is_not_in_the_text(byte_level):
    tokenizer = byte_level
    transcript = Transcript(tokenizer, [], [])
    ids = [*tokenizer.encode("the dog"), 0]
    tokens = push_all(transcript, ids)
    assert tokens[-1] == ("<|end|>", True, False)
    assert transcript.generated_text == "the dog"
    assert "".join(t.text for t in tokens if not t.special) == "the dog"


def test_the_first_token_after_the_prompt_keeps_its_space(metaspace):
    tokenizer = metaspace
    prompt, new = tokenizer.encode("the"), tokenizer.encode("a b")
    transcript = Transcript(tokenizer, [1, *prompt], [])
    push_all(transcript, new)
    assert transcript.generated_text == " a b"


def test_a_stop_cuts_the_token_and_the_text_at_the_same_place(byte_level):
    tokenizer = byte_level
    ids = tokenizer.encode("The quick brown fox")
    transcript = Transcript(tokenizer, [], ["k bro"])
    tokens = push_all(transcript, ids)
    assert tokens[-1].stopped
    assert transcript.generated_text == "The quick bro" == "".join(t.text for t in tokens)


def test_the_literal_of_a_special_token_can_be_a_stop_string(byte_level):
    tokenizer = byte_level
    transcript = Transcript(tokenizer, [], ["<|end|>"])
    tokens = push_all(transcript, [*tokenizer.encode("dog"), 0, *tokenizer.encode("more")])
    assert tokens[-1] == ("<|end|>", True, True)
    assert transcript.generated_text == "dog"


def test_held_bytes_show_in_the_last_token(byte_level):
    tokenizer = byte_level
    face = tokenizer.encode("日")[:-1]
    transcript = Transcript(tokenizer, [], [])
    tokens = push_all(transcript, face)
    assert transcript.generated_text == tokenizer.decode(face) == "".join(t.text for t in tokens) != ""


def test_held_bytes_before_a_special_last_token_reach_the_generated_text(byte_level):
    tokenizer = byte_level
    face = tokenizer.encode("日")[:-1]
    transcript = Transcript(tokenizer, [], [])
    push_all(transcript, [*face, 0])
    assert transcript.generated_text == tokenizer.decode(face)
