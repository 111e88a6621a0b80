"""Cases of the other routes that their own tests show in part: tokens, platforms, keys, metrics."""

from __future__ import annotations

import pytest
from chat_requests import events
from completion_requests import choices, complete

PREFLIGHT = {"origin": "https://a.example", "access-control-request-method": "POST"}


async def tokenize(one, inputs: str) -> list[dict]:
    answer = await one.client.post("/tokenize", json={"inputs": inputs})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    return answer.json()


# -- tokens --------------------------------------------------------------------------------------------------


@pytest.mark.case(149)
async def test_a_token_has_an_id_a_text_and_a_place(harness, tokenizer):
    (hello,) = tokenizer.encode("Hello")
    answer = await harness().client.post("/tokenize", json={"inputs": "Hello"})
    assert answer.text == f'[{{"id":{hello},"text":"Hello","start":0,"stop":5}}]'
    assert not [name for name in answer.headers if name.startswith("x-")]


@pytest.mark.case(150)
async def test_places_count_bytes_of_utf8(harness):
    tokens = await tokenize(harness(), "é a")
    spans = [(token["start"], token["stop"]) for token in tokens]
    assert (min(start for start, _ in spans), spans[-1][1]) == (0, 4)
    assert all(start <= stop for start, stop in spans)
    # "é" is one character of two bytes, each a token here: whichever half has it spans both
    assert (0, 2) in spans
    assert [token["text"] for token in tokens][-2:] == [" ", "a"]


@pytest.mark.case(153)
async def test_a_chats_tokens_are_those_of_its_text_and_no_others(harness, tokenizer):
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    answer = await harness().client.post("/chat_tokenize", json=body)
    assert answer.status_code == 200
    assert list(answer.json()) == ["tokenize_response", "templated_text"]
    text = answer.json()["templated_text"]
    assert text == "<user>Hello\n<assistant>"
    tokens = answer.json()["tokenize_response"]
    assert [token["id"] for token in tokens] == tokenizer.encode(text, add_special_tokens=False)
    assert [list(token) for token in tokens] == [["id", "text", "start", "stop"]] * len(tokens)
    assert not [name for name in answer.headers if name.startswith("x-")]


# -- completions ---------------------------------------------------------------------------------------------


@pytest.mark.case(139)
async def test_streamed_or_not_each_prompt_is_continued_the_same_way(harness, tokenizer):
    prompts = ["1", "Hello 2", "3", "4"]
    shown = []
    for streamed in (False, True):
        one = harness()
        for text, prompt in zip(("abc", "d", "efgh", "ij"), prompts, strict=True):
            one.script(prompt, *tokenizer.encode(text), 0)
        answer = await complete(one, prompts, stream=streamed, max_tokens=9)
        if streamed:
            found = events(answer)
            texts = {n: "".join(choice["text"] for choice in choices(found, n)) for n in range(4)}
            assert {n: choices(found, n)[-1]["finish_reason"] for n in range(4)} == dict.fromkeys(
                range(4), "eos_token"
            )
            shown.append({n: text.removesuffix("</s>") for n, text in texts.items()})
        else:
            shown.append({choice["index"]: choice["text"] for choice in answer.json()["choices"]})
    assert shown[0] == shown[1] == {0: "abc", 1: "d", 2: "efgh", 3: "ij"}


@pytest.mark.case(140)
async def test_a_streamed_completion_that_ends_by_length_says_so_only_at_the_end(harness):
    found = events(await complete(harness(), stream=True, max_tokens=3))
    assert [event["choices"][0]["finish_reason"] for event in found] == ["", "", "length"]
    assert ["usage" in event for event in found] == [False, False, True]


@pytest.mark.case(144)
async def test_of_two_prompts_the_empty_one_is_an_error_event_and_the_other_streams(harness):
    answer = await complete(harness(), ["Hello", ""], stream=True, max_tokens=2)
    assert answer.status_code == 200
    found = events(answer)  # which ends with the one [DONE]
    assert [choice["text"] for choice in choices(found, 0)] == ["h", "h"]
    message = "Input validation error: `inputs` cannot be empty"
    assert [event for event in found if "choices" not in event] == [
        {"error": {"message": message, "http_status_code": 422}}
    ]


# -- platforms -----------------------------------------------------------------------------------------------


@pytest.mark.case(154)
async def test_an_invocation_is_an_array_a_chat_or_a_completion(harness):
    one = harness()
    short = {"max_new_tokens": 1}
    answer = await one.client.post("/invocations", json={"inputs": "Hello", "parameters": short})
    assert answer.json() == [{"generated_text": "Helloh"}]
    messages = [{"role": "user", "content": "Hi"}]
    answer = await one.client.post("/invocations", json={"messages": messages, "max_tokens": 1})
    assert answer.json()["object"] == "chat.completion"
    answer = await one.client.post("/invocations", json={"prompt": "Hello", "max_tokens": 1})
    assert answer.json()["object"] == "text_completion"


@pytest.mark.case(155)
async def test_inputs_beside_messages_are_generated_from(harness):
    body = {"inputs": "Hello", "messages": [{"role": "user", "content": "a"}]}
    one = harness(max_total_tokens=4, max_input_tokens=3)
    answer = await one.client.post("/invocations", json=body)
    assert answer.json() == [{"generated_text": "Hellohhh"}]


@pytest.mark.case(159)
async def test_one_empty_instance_is_an_incomplete_generation(harness):
    answer = await harness().client.post("/vertex", json={"instances": [{"inputs": ""}]})
    assert answer.status_code == 500
    assert answer.json() == {"error": "Incomplete generation", "error_type": "Incomplete generation"}


# -- keys and origins ----------------------------------------------------------------------------------------


@pytest.mark.case(163)
async def test_of_the_root_only_the_post_needs_a_key(harness):
    one = harness(api_key="Secret")
    assert (await one.client.get("/")).status_code == 200
    answer = await one.client.post("/", json={"inputs": "Hello"})
    assert (answer.status_code, answer.content) == (401, b"")


@pytest.mark.case(165)
async def test_a_request_without_an_origin_is_told_none_where_some_are_listed(harness):
    answer = await harness(cors_allow_origin=("https://a.example",)).client.get("/health")
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["vary"].startswith("origin, ")


@pytest.mark.case(166)
async def test_a_browsers_preflight_is_answered_without_a_key(harness):
    answer = await harness(api_key="Secret").client.options("/generate", headers=PREFLIGHT)
    assert (answer.status_code, answer.content) == (200, b"")
    allowed = {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}
    assert allowed == {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "GET,POST",
        "access-control-allow-headers": "content-type",
    }


# -- metrics -------------------------------------------------------------------------------------------------


async def scrape(one) -> dict[str, str]:
    """Series and value of every line."""
    lines = (await one.client.get("/metrics")).text.splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.case(167, 168)
async def test_one_request_counts_one_and_a_chat_two_more(harness):
    one = harness()
    await one.generate("Hello", max_new_tokens=1)
    found = await scrape(one)
    assert (found["tgi_request_count"], found["tgi_request_success"]) == ("1", "1")
    assert found['tgi_request_duration_bucket{le="0.00015000000000000001"}'] in ("0", "1")
    assert not [name for name in found if "_total" in name]
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    await one.client.post("/v1/chat/completions", json=body)
    found = await scrape(one)
    assert (found["tgi_request_count"], found["tgi_request_success"]) == ("3", "2")


@pytest.mark.case(169)
async def test_a_refusal_is_counted_as_such(harness):
    one = harness()
    await one.client.post("/generate", json={"inputs": ""})
    found = await scrape(one)
    assert found['tgi_request_failure{err="validation"}'] == "1"
    assert "tgi_request_success" not in found
