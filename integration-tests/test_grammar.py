"""Grammars on the real server: each text follows its own, alone or in company, through losses and attacks."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema
import pytest
from test_lifecycle import stream_events

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {
            "type": "array",
            "items": {"enum": ["lists", "tuples", "sets"]},
            "minItems": 1,
            "maxItems": 3,
        },
        "address": {"properties": {"city": {"type": "string", "maxLength": 10}}, "required": ["city"]},
    },
    "required": ["name", "age", "likes", "address"],
}
JSON = {"type": "json", "value": PERSON}
ADDRESS = r"((25[0-5]|2[0-4]\d|[01]?\d\d?)\.){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)"


def ask(
    grammar: object = None, seed: int | None = None, new: int = 120, **parameters: object
) -> dict[str, Any]:
    """A body for /generate; ``seed`` makes it sample."""
    asked: dict[str, object] = {"max_new_tokens": new, "details": True, **parameters}
    if grammar is not None:
        asked["grammar"] = grammar
    if seed is not None:
        asked |= {"do_sample": True, "seed": seed}
    return {"inputs": "The built-in list type is", "parameters": asked}


def post(server, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{server.base_url}/generate", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def tokens(answer: dict[str, Any]) -> list[int]:
    return [token["id"] for token in answer["details"]["tokens"]]


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_json_follows_its_schema_and_ends(demo, seed):
    answer = post(demo, ask(JSON, seed))
    assert answer["details"]["finish_reason"] == "eos_token"
    value = json.loads(answer["generated_text"])
    jsonschema.validate(value, PERSON)
    assert list(value) == ["name", "age", "likes", "address"]
    assert list(value["address"]) == ["city"]  # and nothing the schema does not name


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_a_regex_matches_the_whole_text(demo, seed):
    answer = post(demo, ask({"type": "regex", "value": ADDRESS}, seed))
    assert answer["details"]["finish_reason"] == "eos_token"
    assert re.fullmatch(ADDRESS, answer["generated_text"])


def test_a_text_that_is_cut_is_the_beginning_of_one_that_is_not(demo):
    whole, cut = post(demo, ask(JSON, 5)), post(demo, ask(JSON, 5, new=6))
    assert cut["details"]["finish_reason"] == "length"
    assert tokens(cut) == tokens(whole)[:6]


def test_a_stream_is_the_same_text(demo):
    whole = post(demo, ask(JSON, 4, top_n_tokens=3))
    events = stream_events(demo.base_url, ask(JSON, 4, top_n_tokens=3))
    assert [event["token"] for event in events] == whole["details"]["tokens"]
    assert [event["top_tokens"] for event in events] == whole["details"]["top_tokens"]
    assert events[-1]["generated_text"] == whole["generated_text"]


def test_the_same_alone_and_in_company_with_a_grammar_or_without(demo):
    kinds = [JSON, None, {"type": "regex", "value": "[a-z ]{20,60}"}, {"type": "regex", "value": ADDRESS}]
    bodies = [ask(kinds[n % 4], seed=n if n % 3 else None) for n in range(16)]
    alone = [post(demo, body) for body in bodies]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda body: post(demo, body), bodies))
    assert [tokens(answer) for answer in together] == [tokens(answer) for answer in alone]


def test_penalties_top_k_and_top_p_stay_within_the_grammar(demo):
    grammar = {"type": "regex", "value": "(yes|no|maybe)( (yes|no|maybe)){3}"}
    answer = post(
        demo, ask(grammar, 3, temperature=1.5, top_k=3, top_p=0.9, repetition_penalty=1.8, typical_p=0.8)
    )
    assert re.fullmatch(grammar["value"], answer["generated_text"])


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ({"type": "regex", "value": "("}, "grammar is not valid: unclosed group"),
        ({"type": "regex", "value": r"[^\s\S]"}, "grammar is not valid: no text follows it"),
        (
            {"type": "json", "value": {"type": "object"}},
            "grammar is not valid: Grammar must have a 'properties' field",
        ),
        ({"type": "json", "value": 5}, "grammar is not supported"),
        (
            {"type": "json", "value": {"properties": {"a": {"$ref": "#/nowhere"}}}},
            "cannot compile regex from schema: Pointer '/nowhere' does not exist",
        ),
    ],
)
def test_a_grammar_that_cannot_be_is_refused_on_either_route(demo, grammar, text):
    for route in ("generate", "generate_stream"):
        answer = httpx.post(f"{demo.base_url}/{route}", json=ask(grammar), timeout=60)
        assert answer.status_code == 422
        assert answer.json() == {"error": f"Input validation error: {text}", "error_type": "validation"}


def test_chat_holds_to_its_response_format(demo):
    body = {
        "model": "tgi",
        "messages": [{"role": "user", "content": "Who?"}],
        "max_tokens": 120,
        "seed": 1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}},
    }
    answer = httpx.post(f"{demo.base_url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    jsonschema.validate(json.loads(answer.json()["choices"][0]["message"]["content"]), PERSON)


def test_adversarial_grammars_do_not_hold_up_a_running_stream(demo):
    """Each is refused after about a second of work, in which the stream of another client goes on."""
    links = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(3000)}
    crash = {"properties": {"x": {"$ref": "#/$defs/a0"}}, "$defs": {**links, "a3000": {"type": "string"}}}
    stall = {"properties": {"x": {"type": "integer", "multipleOf": 1000003}}}
    patterns = {f"^{n}[a-z]{{1,20}}$": {} for n in range(2000)}
    attacks = [
        {"type": "json", "value": v}
        for v in (crash, stall, {"properties": {}, "patternProperties": patterns})
    ]
    arrived: list[int] = []
    during: list[int] = []
    refusals: list[httpx.Response] = []

    def attack(grammar: object) -> None:
        before = len(arrived)
        refusals.append(httpx.post(f"{demo.base_url}/generate", json=ask(grammar), timeout=60))
        during.append(len(arrived) - before)

    attackers = [threading.Thread(target=attack, args=(grammar,)) for grammar in attacks]
    generator = demo.children()["serve_generator"]

    def on_event(event: dict[str, Any]) -> None:
        arrived.append(event["index"])
        if len(arrived) == 5:
            for thread in attackers:
                thread.start()

    endless = ask({"type": "regex", "value": "([a-z]{1,9} ){900}"}, new=400)
    while not arrived or any(thread.is_alive() for thread in attackers):
        assert stream_events(demo.base_url, endless, on_event)[-1]["details"]["finish_reason"] == "length"
    texts = sorted(refusal.json()["error"].partition("schema: ")[2] for refusal in refusals)
    assert texts == [
        "it is nested too deeply",
        "it takes too long to compile",
        "it takes too long to compile",
    ]
    assert max(during) > 50  # tokens of the stream while the slowest of them was looked at
    assert demo.children()["serve_generator"] == generator


def test_a_grammar_that_becomes_too_much_ends_its_stream_with_an_error_and_no_other(demo):
    """Its lexer needs a state for every way in which the last 500 characters may matter."""
    beside = []
    neighbour = threading.Thread(target=lambda: beside.append(post(demo, ask(JSON, 9))))
    neighbour.start()
    body = ask({"type": "regex", "value": "(x|y|.*a.{500})+!"}, 1, new=800)
    lines = []
    with httpx.stream("POST", f"{demo.base_url}/generate_stream", json=body, timeout=60) as response:
        lines = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    neighbour.join()
    assert lines[-1]["error_type"] == "validation"
    assert "grammar is too complex to follow" in lines[-1]["error"]
    assert tokens(beside[0]) == tokens(post(demo, ask(JSON, 9)))


def test_a_killed_generator_goes_on_with_the_very_same_constrained_text(launch):
    server = launch("--max-batch-size", "2").wait_ready()
    body = ask({"type": "regex", "value": r"(- [a-z ,]{5,30}\n){4,12}"}, 7, new=200, temperature=0.9)
    undisturbed = stream_events(server.base_url, body)
    assert len(undisturbed) > 25
    killed = []

    def on_event(event):
        if event["index"] == 15 and not killed:
            killed.append(server.children()["serve_generator"])
            os.kill(killed[0], signal.SIGKILL)

    disturbed = stream_events(server.base_url, body, on_event)
    assert [e["token"]["id"] for e in disturbed] == [e["token"]["id"] for e in undisturbed]
    assert disturbed[-1]["generated_text"] == undisturbed[-1]["generated_text"]
    assert re.fullmatch(body["parameters"]["grammar"]["value"], disturbed[-1]["generated_text"])


def test_grammars_can_be_switched_off(launch):
    server = launch("--disable-grammar-support").wait_ready()
    answer = httpx.post(f"{server.base_url}/generate", json=ask({"type": "regex", "value": "a"}), timeout=60)
    assert answer.status_code == 422
    assert answer.json()["error"] == "Input validation error: grammar is not supported"
