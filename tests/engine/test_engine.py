import numpy as np
import pytest
from conformance import NO_SHARD_RPC
from model_backend import ModelBackend, expected_events, history_logits, random_request, without_times

from neuron_server.backend import DecodeRow, Output, PrefillRow
from neuron_server.engine.engine import Engine, Joiner
from neuron_server.errors import (
    BackendError,
    DeviceFailedError,
    GenerationError,
    NeuronTgiError,
)
from neuron_server.event import TokenEvent
from neuron_server.request import GenerationRequest

MODES = ["insert", "rebuild"]


def ask(*tokens: int, new: int = 3, prompt: int | None = None, **options: object) -> GenerationRequest:
    return GenerationRequest(tokens, len(tokens) if prompt is None else prompt, new, **options)


class Run:
    """An engine and everything that came out of it, by key."""

    def __init__(self, backend: ModelBackend) -> None:
        self.backend = backend
        self.engine: Engine[str] = Engine(backend)
        self.events: dict[str, list[TokenEvent]] = {}
        self.errors: dict[str, NeuronTgiError] = {}

    def place(self, **requests: GenerationRequest) -> None:
        self._take(self.engine.place([Joiner(key, request, 0.0) for key, request in requests.items()]))

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self._take(self.engine.step())

    def finish(self) -> None:
        while self.engine.running:
            self.step()

    def _take(self, outcome: object) -> None:
        for key, event in outcome.tokens:
            self.events.setdefault(key, []).append(event)
        for key, error in outcome.errors:
            assert key not in self.errors
            self.errors[key] = error

    def assert_exact(self, **requests: GenerationRequest) -> None:
        for key, request in requests.items():
            expected = expected_events(request, self.backend.info.vocab_size)
            assert without_times(self.events[key]) == expected, key


@pytest.mark.parametrize("mode", MODES)
def test_requests_that_come_and_go_are_exact(mode: str) -> None:
    run = Run(ModelBackend(3, 24, mode=mode))
    first, second, third = ask(1, 2, 3, new=9), ask(4, 5, new=2), ask(6, 7, 8, 9, new=5)
    run.place(first=first)
    run.step(2)
    run.place(second=second, third=third)
    run.finish()
    run.assert_exact(first=first, second=second, third=third)
    assert not run.backend.live


@pytest.mark.parametrize("mode", MODES)
def test_the_lowest_free_slot_is_taken_first(mode: str) -> None:
    run = Run(ModelBackend(4, 24, mode=mode))
    run.place(a=ask(1, 2), b=ask(3, 4), c=ask(5, 6))
    run.engine.release("b")
    assert sorted(run.backend.live) == [0, 2]
    run.place(d=ask(7, 8))
    assert sorted(run.backend.live) == [0, 1, 2]


@pytest.mark.case(179, deviation=NO_SHARD_RPC)
@pytest.mark.parametrize("mode", MODES)
def test_the_same_prompt_placed_later_says_the_same_beside_the_first(mode: str) -> None:
    run = Run(ModelBackend(4, 24, mode=mode))
    run.place(a=ask(1, 2, 3, new=9))
    run.step(3)
    run.place(b=ask(1, 2, 3, new=9))
    assert (len(run.events["a"]), len(run.events["b"])) == (4, 1)
    run.finish()
    assert without_times(run.events["a"]) == without_times(run.events["b"])
    assert [len(rows) for call, rows in run.backend.calls if call == "decode"] == [1] * 3 + [2] * 5 + [1] * 3
    assert not run.backend.live


def test_insert_prefills_one_at_a_time_and_leaves_others_alone() -> None:
    run = Run(ModelBackend(4, 24))
    run.place(a=ask(1, 2), b=ask(3, 4, 5))
    run.step()
    run.place(c=ask(6, 7))
    assert run.backend.calls == [
        ("prefill", [(0, 2)]),
        ("prefill", [(1, 3)]),
        ("decode", [(0, 2), (1, 3)]),
        ("prefill", [(2, 2)]),
    ]


def test_rebuild_prefills_everyone_with_full_history() -> None:
    run = Run(ModelBackend(4, 24, mode="rebuild"))
    run.place(a=ask(1, 2), b=ask(3, 4, 5))
    run.step()
    run.place(c=ask(6))
    assert run.backend.calls == [
        ("prefill", [(0, 2), (1, 3)]),
        ("decode", [(0, 2), (1, 3)]),
        ("prefill", [(0, 3), (1, 4), (2, 1)]),
    ]


def test_one_token_prompts_enter_an_inserting_backend_through_decode() -> None:
    run = Run(ModelBackend(4, 24, score=True))
    alone, more, scored = ask(9), ask(1, 2, new=5), ask(8, prompt_logprobs=True)
    run.place(alone=alone)
    assert run.events == {}
    run.place(more=more, scored=scored)
    run.step()
    assert run.backend.calls[-1] == ("decode", [(0, 0), (1, 2), (2, 0)])
    run.finish()
    assert run.events["scored"][0].prompt_logprobs == (None,)
    assert run.events["alone"][0].queue_s is not None
    run.events["scored"] = [*map(without_scores, run.events["scored"])]
    run.assert_exact(alone=alone, more=more, scored=ask(8))


def without_scores(event: TokenEvent) -> TokenEvent:
    return TokenEvent(event.token_id, event.logprob, event.top_tokens, event.finish)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_prompt_logprobs_come_with_the_first_event(mode: str, size: int) -> None:
    run = Run(ModelBackend(2, 24, mode=mode, score=True))
    tokens = tuple(range(size))
    run.place(a=ask(1, 2, new=9))
    run.place(b=ask(*tokens, 30, 31, new=2, prompt=size, prompt_logprobs=True))
    run.finish()
    scores = run.events["b"][0].prompt_logprobs
    assert scores is not None
    assert scores[0] is None
    for i in range(1, size):
        logits = history_logits(tokens[:i], 50).astype(np.float64)
        assert scores[i] == pytest.approx(logits[i] - np.log(np.exp(logits).sum()), abs=1e-5)
    assert len(scores) == size
    assert run.events["b"][1].prompt_logprobs is None
    assert run.events["a"][0].prompt_logprobs is None


def test_prompt_logprobs_are_none_where_the_backend_cannot_score() -> None:
    run = Run(ModelBackend(2, 24))
    run.place(a=ask(1, 2, prompt_logprobs=True), b=ask(1, prompt_logprobs=True))
    run.finish()
    assert run.events["a"][0].prompt_logprobs is None
    assert run.events["b"][0].prompt_logprobs is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut", [1, 4, 10])
def test_a_resumed_request_goes_on_exactly(mode: str, cut: int) -> None:
    """Also when prompt and generated text are longer than the prefill graph: the rest goes through decode."""
    rng = np.random.default_rng(cut)
    for prompt_limit in (1, 2, 4, 20):
        run = Run(ModelBackend(2, 30, prompt=prompt_limit, mode=mode))
        whole = ask(*rng.integers(0, 50, min(3, prompt_limit)).tolist(), new=12)
        events = expected_events(whole, 50)
        done = tuple(event.token_id for event in events[:cut])
        rest = GenerationRequest(whole.input_ids + done, whole.prompt_length, 12 - cut)
        other = ask(5, 6, new=20) if prompt_limit > 1 else ask(5, new=20)
        run.place(other=other)
        run.place(rest=rest)
        run.finish()
        assert without_times(run.events["rest"]) == events[cut:]
        assert run.events["rest"][0].queue_s is not None
        run.assert_exact(other=other)


@pytest.mark.parametrize("mode", MODES)
def test_a_slot_can_be_filled_to_its_last_token(mode: str) -> None:
    run = Run(ModelBackend(2, 8, mode=mode))
    full, late = ask(*range(7), new=1), ask(1, 2, new=6)
    run.place(full=full, late=late)
    run.finish()
    run.assert_exact(full=full, late=late)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", range(5))
def test_release_at_any_point_frees_the_slot_and_changes_no_neighbour(mode: str, steps: int) -> None:
    run = Run(ModelBackend(3, 24, mode=mode))
    stays, goes, comes = ask(1, 2, new=8), ask(3, new=10), ask(4, 5, new=3)
    run.place(stays=stays, goes=goes)
    run.step(steps)
    run.engine.release("goes")
    assert run.engine.free_slots == 2
    seen = len(run.events.get("goes", []))
    run.place(comes=comes)
    run.finish()
    run.assert_exact(stays=stays, comes=comes)
    assert len(run.events.get("goes", [])) == seen
    assert not run.backend.live


def test_releasing_what_is_unknown_or_finished_does_nothing() -> None:
    run = Run(ModelBackend())
    run.engine.release("nobody")
    run.place(a=ask(1, 2, new=1))
    run.engine.release("a")
    assert run.engine.free_slots == 4


@pytest.mark.case(175)
@pytest.mark.parametrize("mode", MODES)
def test_a_joiner_the_backend_refuses_fails_alone(mode: str) -> None:
    def refuse(rows: list[PrefillRow]) -> None:
        if any(row.tokens[0] == 13 for row in rows):
            raise BackendError("unlucky")

    run = Run(ModelBackend(4, 24, mode=mode, on_prefill=refuse))
    good, better, bad = ask(1, 2, new=6), ask(3, 4, new=6), ask(13, 2)
    run.place(good=good)
    run.place(bad=bad, better=better)
    run.finish()
    run.assert_exact(good=good, better=better)
    assert str(run.errors["bad"]) == "unlucky"
    assert set(run.errors) == {"bad"}


def test_a_one_token_prompt_the_backend_refuses_fails_alone() -> None:
    def refuse(rows: list[DecodeRow]) -> None:
        if any(row.token == 13 and row.position == 0 for row in rows):
            raise BackendError("unlucky")

    run = Run(ModelBackend(4, 24, on_decode=refuse))
    good, other, more = ask(1, 2, new=9), ask(3, new=4), ask(4, new=4)
    run.place(good=good, other=other, bad=ask(13), more=more)
    run.finish()
    run.assert_exact(good=good, other=other, more=more)
    assert set(run.errors) == {"bad"}


def test_a_refused_decode_of_live_rows_ends_them_and_the_engine_goes_on() -> None:
    refusals = [BackendError("no")]

    def refuse(rows: list[DecodeRow]) -> None:
        if refusals:
            raise refusals.pop()

    run = Run(ModelBackend(4, 24, on_decode=refuse))
    after = ask(5, 6, new=4)
    run.place(a=ask(1, 2), b=ask(3, 4))
    run.step()
    assert set(run.errors) == {"a", "b"}
    assert isinstance(run.errors["a"], GenerationError)
    assert not run.backend.live
    run.place(after=after)
    run.finish()
    run.assert_exact(after=after)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_a_row_that_is_not_finite_fails_alone(mode: str, when: str) -> None:
    class Spoiled(ModelBackend):
        def prefill(self, rows: list[PrefillRow]) -> Output:
            return self._spoil(super().prefill(rows), when == "prefill")

        def decode(self, rows: list[DecodeRow]) -> Output:
            return self._spoil(super().decode(rows), when == "decode")

        def _spoil(self, output: Output, now: bool) -> Output:
            for i, slot in enumerate(sorted(self.live) if len(output.logits) > 1 else []):
                if now and self.live[slot][0] == 13:
                    output.logits[i, 7] = np.nan
            if now and len(output.logits) == 1 and any(t[0] == 13 for t in self.live.values()):
                output.logits[0, 7] = np.nan
            return output

    run = Run(Spoiled(4, 24, mode=mode))
    good = ask(1, 2, new=6)
    run.place(good=good)
    run.place(bad=ask(13, 2))
    run.finish()
    run.assert_exact(good=good)
    assert "finite" in str(run.errors["bad"])
    assert not run.backend.live


@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_a_dead_device_is_not_hidden(when: str) -> None:
    backend = ModelBackend()
    setattr(backend, f"on_{when}", lambda rows: backend.fail())
    run = Run(backend)

    def go() -> None:
        run.place(a=ask(1, 2))
        run.step()

    with pytest.raises(DeviceFailedError):
        go()


def test_too_many_joiners_and_keys_in_use_are_the_callers_fault() -> None:
    run = Run(ModelBackend(1, 24))
    with pytest.raises(ValueError, match="2 joiners for 1"):
        run.place(a=ask(1, 2), b=ask(1, 2))
    run.place(a=ask(1, 2))
    with pytest.raises(ValueError, match="1 joiners for 0"):
        run.place(a=ask(1, 2))


def test_stall_is_the_time_that_others_waited_since_the_last_decode() -> None:
    now = [0.0]
    backend = ModelBackend(4, 24, on_prefill=lambda rows: now.__setitem__(0, now[0] + 0.25))
    engine: Engine[str] = Engine(backend, clock=lambda: now[0])
    engine.place([Joiner("a", ask(1, 2), 0.0)])
    assert engine.stalled_s == 0.0  # nobody waited
    engine.place([Joiner("b", ask(1, 2), 0.0)])
    engine.place([Joiner("c", ask(1, 2), 0.0)])
    assert engine.stalled_s == 0.5
    assert engine.steps_since_join == 0
    engine.step()
    assert (engine.stalled_s, engine.steps_since_join) == (0.0, 1)


def test_queue_time_ends_where_the_own_prefill_starts() -> None:
    now = [10.0]
    backend = ModelBackend(4, 24, on_prefill=lambda rows: now.__setitem__(0, now[0] + 1.0))
    engine: Engine[str] = Engine(backend, clock=lambda: now[0])
    outcome = engine.place([Joiner("a", ask(1, 2), 9.5), Joiner("b", ask(1, 2), 9.5)])
    assert [event.queue_s for _, event in outcome.tokens] == [0.5, 1.5]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(4))
def test_random_operations_against_the_model(mode: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    run = Run(ModelBackend(5, 20, prompt=12, mode=mode))
    asked: dict[str, GenerationRequest] = {}
    gone: set[str] = set()
    for number in range(150):
        act = rng.integers(0, 6)
        if act < 2 and run.engine.free_slots:
            count = int(rng.integers(1, run.engine.free_slots + 1))
            new = {f"{number}-{i}": random_request(rng, length=20, prompt=12, vocab=50) for i in range(count)}
            asked |= new
            run.place(**new)
        elif act == 2 and asked:
            key = str(rng.choice(list(asked)))
            run.engine.release(key)
            gone.add(key)
        else:
            run.step()
    run.finish()
    assert not run.errors
    run.assert_exact(**{key: request for key, request in asked.items() if key not in gone})
    for key in gone & set(run.events):
        expected = expected_events(asked[key], 50)
        assert without_times(run.events[key]) == expected[: len(run.events[key])]
