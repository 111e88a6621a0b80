"""An engine on a device that samples: its tokens are taken, and nothing is computed from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from device_backend import DeviceBackend
from model_backend import ModelBackend

from neuron_server.backend import GREEDY, DeviceSampling, Output
from neuron_server.engine import choosing
from neuron_server.engine.engine import Engine, Joiner
from neuron_server.engine.plain import generate
from neuron_server.errors import GenerationError, ValidationError
from neuron_server.event import TokenEvent
from neuron_server.request import GenerationRequest, SamplingParams

MODES = ["insert", "rebuild"]
DRAWN = SamplingParams(do_sample=True, temperature=0.5, top_k=5, seed=3)


def ask(*tokens: int, new: int = 3, prompt: int | None = None, **options: object) -> GenerationRequest:
    return GenerationRequest(tokens, len(tokens) if prompt is None else prompt, new, **options)


def place(engine: Engine[str], **requests: GenerationRequest) -> object:
    return engine.place([Joiner(key, request, 0.0) for key, request in requests.items()])


def silent(events: list[TokenEvent]) -> list[TokenEvent]:
    return [replace(event, logprob=None, queue_s=None) for event in events]


@pytest.mark.group(13)
@pytest.mark.parametrize("mode", MODES)
def test_greedy_requests_get_the_tokens_of_a_backend_with_logits_and_no_logprobs(mode: str) -> None:
    requests = [ask(1, 2, 3, new=9), ask(4, new=4), ask(5, 6, new=12, stop_ids=frozenset(range(0, 50, 7)))]
    requests.append(ask(7, 8, 9, 10, 11, new=5, prompt=2))  # resumed, and catching up where that is needed
    drawn_here = generate(ModelBackend(2, 24, prompt=4, mode=mode), requests)
    handed_over = generate(DeviceBackend(2, 24, prompt=4, mode=mode), requests)
    assert [silent(events) for events in handed_over] == [silent(events) for events in drawn_here]
    assert {event.logprob for events in handed_over for event in events} == {None}


@pytest.mark.group(15)
@pytest.mark.parametrize("mode", MODES)
def test_every_row_carries_the_sampling_of_its_own_request(mode: str) -> None:
    backend = DeviceBackend(3, 24, mode=mode)
    engine: Engine[str] = Engine(backend)
    place(engine, a=ask(1, 2, new=9, sampling=DRAWN))
    engine.step()
    place(engine, b=ask(3, 4, new=9), c=ask(5, new=9, sampling=replace(DRAWN, top_k=0)))
    engine.step()
    own = {0: DeviceSampling(5, 1.0, 0.5), 1: GREEDY, 2: DeviceSampling(16, 1.0, 0.5)}
    assert backend.asked[0] == {0: own[0]}
    assert backend.asked[-1] == own
    joined = backend.asked[2:-1]
    assert [{slot: row for slot, row in call.items() if slot} for call in joined] == (
        [{1: own[1]}] if mode == "insert" else [{1: own[1], 2: own[2]}]
    )


def test_the_host_samples_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> object:
        raise AssertionError("sampled on the host")

    monkeypatch.setattr(choosing, "sample", never)
    (events,) = generate(DeviceBackend(1, 24), [ask(1, 2, new=6, sampling=DRAWN)])
    assert len(events) == 6


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stray", [-1, 50, 2**40])
def test_a_token_outside_the_vocabulary_ends_its_own_request_only(mode: str, stray: int) -> None:
    def choose(slots: list[int], logits: np.ndarray) -> np.ndarray:
        tokens = logits.argmax(axis=1)
        tokens[[slot == 2 for slot in slots]] = stray
        return tokens

    backend = DeviceBackend(3, 24, mode=mode, choose=choose)
    engine: Engine[str] = Engine(backend)
    outcome = place(engine, a=ask(1, 2, new=4), b=ask(3, 4, new=4), c=ask(5, 6, new=4))
    ((key, error),) = outcome.errors
    assert (key, type(error)) == ("c", GenerationError)
    assert f"token {stray} " in str(error)
    assert "50 tokens" in str(error)
    assert sorted(backend.live) == [0, 1]
    assert [key for _ in range(3) for key, _ in engine.step().tokens] == ["a", "b"] * 3
    assert not backend.live


def test_a_row_that_is_catching_up_ignores_the_device() -> None:
    """Its tokens are known: those of a lost generator, which its client has already."""
    backend = DeviceBackend(2, 24, prompt=2, choose=lambda slots, logits: np.full(len(slots), 49))
    engine: Engine[str] = Engine(backend)
    known = (1, 2, 3, 4, 5)
    outcomes = [place(engine, a=ask(*known, new=2, prompt=2)), *(engine.step() for _ in range(4))]
    assert [[event.token_id for _, event in outcome.tokens] for outcome in outcomes] == [
        [],
        [],
        [],
        [49],
        [49],
    ]


def test_running_rows_of_a_rebuild_ignore_the_device() -> None:
    backend = DeviceBackend(3, 24, mode="rebuild", choose=lambda slots, logits: 40 + np.arange(len(slots)))
    engine: Engine[str] = Engine(backend)
    place(engine, a=ask(1, 2, new=5))
    outcome = place(engine, b=ask(3, 4, new=5), c=ask(5, 6, new=5))
    assert [(key, event.token_id) for key, event in outcome.tokens] == [("b", 41), ("c", 42)]


def test_what_the_device_cannot_do_never_reaches_it() -> None:
    backend = DeviceBackend(1, 24)
    with pytest.raises(ValidationError, match="`top_k` is 17"):
        generate(backend, [ask(1, 2, sampling=replace(DRAWN, top_k=17))])
    assert not backend.calls


def test_top_p_reaches_the_device_where_its_difference_is_accepted() -> None:
    backend = DeviceBackend(1, 24)
    narrow = ask(1, 2, new=1, sampling=replace(DRAWN, top_p=0.75))
    with pytest.raises(ValidationError, match=r"`top_p` is 0\.75"):
        generate(backend, [narrow])
    generate(backend, [narrow], approximate_top_p=True)
    assert backend.asked == [{0: DeviceSampling(5, 0.75, 0.5)}]


def test_a_backend_that_forgets_its_tokens_is_no_backend() -> None:
    class Forgetful(DeviceBackend):
        def _tokens(self, rows: object, output: Output) -> Output:
            return output

    with pytest.raises(AssertionError, match="hands over tokens"):
        generate(Forgetful(1, 24), [ask(1, 2)])
