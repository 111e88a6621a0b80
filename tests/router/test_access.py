"""CORS and the API key (conformance cases 160 to 166)."""

from __future__ import annotations

import pytest

VARY = "origin, access-control-request-method, access-control-request-headers"
PROTECTED = [
    *("/", "/generate", "/generate_stream", "/v1/chat/completions", "/v1/completions"),
    *("/tokenize", "/invocations", "/vertex"),
]
OPEN = [
    *("/", "/health", "/ping", "/info", "/metrics", "/v1/models"),
    *("/docs", "/api-doc/openapi.json"),
]
BODY = {"inputs": "Hello", "parameters": {"max_new_tokens": 1}}


@pytest.mark.case(160, 163)
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Secret"}])
@pytest.mark.parametrize("path", PROTECTED)
async def test_without_the_key_it_is_an_empty_401_before_the_body_is_read(harness, headers, path):
    one = harness(api_key="Secret")
    answer = await one.client.post(path, content=b"{broken", headers=headers)
    assert (answer.status_code, answer.content) == (401, b"")


@pytest.mark.case(161)
async def test_the_whole_header_is_compared_without_case(harness):
    one = harness(api_key="Secret")
    answer = await one.client.post("/generate", json=BODY, headers={"authorization": "bearer SECRET"})
    assert answer.status_code == 200


@pytest.mark.case(162, 163)
@pytest.mark.parametrize("path", OPEN)
async def test_status_routes_need_no_key(harness, path):
    one = harness(api_key="Secret")
    assert (await one.client.get(path)).status_code == 200
    assert (await one.client.head(path)).status_code == 200


@pytest.mark.case(162)
async def test_tokenizing_a_chat_needs_no_key(harness):
    one = harness(api_key="Secret")
    answer = await one.client.post("/chat_tokenize", json={"messages": [{"role": "user", "content": "Hi"}]})
    assert answer.status_code == 200


async def test_a_wrong_method_on_a_protected_path_is_401_but_an_unknown_path_404(harness):
    one = harness(api_key="Secret")
    for path in PROTECTED:
        assert (await one.client.request("GET" if path != "/" else "PUT", path)).status_code == 401
    for path in ("/nope", "/generate/", "/v1", "/v1/completions/x"):
        assert (await one.client.get(path)).status_code == 404
        assert (await one.client.post(path)).status_code == 404
    assert (await one.client.post("/info")).status_code == 405
    assert (await one.client.get("/chat_tokenize")).status_code == 405


@pytest.mark.parametrize(
    "given", ["Bearer", "bearer ", "Bearer Secret ", "Basic Secret", "Bearer Secret x", "é"]
)
async def test_what_is_nearly_the_key_is_not_the_key(harness, given):
    one = harness(api_key="Secret")
    headers = {"authorization": given.encode("latin-1")}
    assert (await one.client.post("/v1/completions", json={}, headers=headers)).status_code == 401


@pytest.mark.parametrize(
    ("key", "given"),
    [("Sécret", "Bearer Sécret"), ("Sécret", "bearer SéCRET"), ("Kelvin", "Bearer \u212aelvin")],
)
async def test_a_key_that_is_not_ascii_is_compared_byte_by_byte(harness, key, given):
    """TGI lets nobody in with such a key. The last one is K in Unicode's lower case, and no K."""
    one = harness(api_key=key)
    answer = await one.client.post("/generate", json=BODY, headers={"authorization": given.encode()})
    assert answer.status_code == (401 if key == "Kelvin" else 200)


@pytest.mark.case(164)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/health"), ("GET", "/nope"), ("GET", "/generate"), ("POST", "/generate")]
)
async def test_any_origin_is_allowed_on_every_answer(harness, method, path):
    answer = await harness().client.request(method, path)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["vary"] == VARY


async def test_a_refusal_for_want_of_a_key_has_the_headers_too(harness):
    answer = await harness(api_key="k").client.post("/generate", json=BODY)
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.case(165)
async def test_only_listed_origins_are_echoed_and_others_are_served_all_the_same(harness):
    one = harness(cors_allow_origin=("https://a.example",))
    answer = await one.client.post("/generate", json=BODY, headers={"origin": "https://a.example"})
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    answer = await one.client.post("/generate", json=BODY, headers={"origin": "https://b.example"})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.case(166)
@pytest.mark.parametrize("path", [*PROTECTED, *OPEN, "/chat_tokenize", "/nowhere"])
async def test_options_is_answered_for_any_path_before_the_key(harness, path):
    answer = await harness(api_key="Secret").client.options(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["access-control-allow-methods"] == "GET,POST"
    assert answer.headers["access-control-allow-headers"] == "content-type"
