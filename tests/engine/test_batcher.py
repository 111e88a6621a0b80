import numpy as np
import pytest
from model_backend import ModelBackend, expected_events, random_request, without_times

from neuron_server.engine.batcher import Batcher
from neuron_server.engine.schedule import Policy
from neuron_server.errors import ValidationError
from neuron_server.event import TokenEvent
from neuron_server.request import GenerationRequest

MODES = ["insert", "rebuild"]
EAGER = Policy(waiting_served_ratio=0.0)


def ask(*tokens: int, new: int = 3) -> GenerationRequest:
    return GenerationRequest(tokens, len(tokens), new)


def turn(batcher: Batcher[str]) -> dict[str, list[TokenEvent]]:
    events: dict[str, list[TokenEvent]] = {}
    for outcome in batcher.turn():
        assert not outcome.errors
        for key, event in outcome.tokens:
            events.setdefault(key, []).append(event)
    return events


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(3))
def test_64_requests_arriving_at_random_on_4_slots_are_each_as_alone(mode: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    backend = ModelBackend(4, 40, prompt=20, mode=mode)
    policy = Policy(
        max_batch_prefill_tokens=int(rng.integers(20, 90)), max_waiting_tokens=int(rng.integers(0, 20))
    )
    batcher: Batcher[int] = Batcher(backend, policy)
    requests = [random_request(rng, length=40, prompt=20, vocab=50) for _ in range(64)]
    events: list[list[TokenEvent]] = [[] for _ in requests]
    first_seen: list[int] = []
    arrived = 0
    while arrived < 64 or not batcher.idle:
        while arrived < 64 and rng.random() < 0.3:
            batcher.submit(arrived, requests[arrived])
            arrived += 1
        for outcome in batcher.turn():
            assert not outcome.errors
            for number, event in outcome.tokens:
                first_seen += [] if events[number] else [number]
                events[number].append(event)
    for request, seen in zip(requests, events, strict=True):
        assert without_times(seen) == expected_events(request, 50)
    assert not backend.live
    assert batcher.free_slots == 4


def test_requests_join_in_the_order_of_their_arrival() -> None:
    backend = ModelBackend(2, 24)
    batcher: Batcher[str] = Batcher(backend, EAGER)
    for i, length in enumerate((9, 2, 8, 3, 7)):
        batcher.submit(str(i), ask(*range(length), new=2))
    order: list[str] = []
    while not batcher.idle:
        order += [key for key in turn(batcher) if key not in order]
    assert order == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("mode", MODES)
def test_at_most_one_group_of_prefills_between_two_decodes(mode: str) -> None:
    backend = ModelBackend(8, 24, mode=mode)
    batcher: Batcher[str] = Batcher(backend, Policy(max_batch_prefill_tokens=20, waiting_served_ratio=0.0))
    for i in range(8):
        batcher.submit(str(i), ask(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, new=9))
    for joined in (2, 4, 6, 8):
        turn(batcher)
        assert len(backend.live) == joined
    decodes = [call for call, _ in backend.calls]
    per_gap = ["prefill"] if mode == "rebuild" else ["prefill"] * 2
    assert decodes == [*per_gap, "decode"] * 4


def test_the_stall_bound_bites_between_the_prompts_of_a_group() -> None:
    now = [0.0]
    backend = ModelBackend(8, 24, on_prefill=lambda rows: now.__setitem__(0, now[0] + 0.3))
    policy = Policy(waiting_served_ratio=0.0, max_prefill_stall_s=0.5)
    batcher: Batcher[str] = Batcher(backend, policy, clock=lambda: now[0])
    for i in range(8):
        batcher.submit(str(i), ask(1, 2, new=20))
    turn(batcher)
    # The first prefill makes nobody wait; two more reach the bound.
    assert len(backend.live) == 3
    turn(batcher)
    assert len(backend.live) == 5
    assert [call for call, _ in backend.calls].count("decode") == 2


def test_a_bound_of_zero_still_lets_one_prompt_in_per_step() -> None:
    now = [0.0]
    backend = ModelBackend(4, 24, on_prefill=lambda rows: now.__setitem__(0, now[0] + 0.3))
    policy = Policy(waiting_served_ratio=0.0, max_prefill_stall_s=0.0)
    batcher: Batcher[str] = Batcher(backend, policy, clock=lambda: now[0])
    for i in range(4):
        batcher.submit(str(i), ask(1, 2, new=20))
    turn(batcher)
    assert len(backend.live) == 2
    turn(batcher)
    assert len(backend.live) == 3


def test_a_stall_that_everybody_left_does_not_hold_up_the_queue() -> None:
    now = [0.0]
    backend = ModelBackend(4, 24, on_prefill=lambda rows: now.__setitem__(0, now[0] + 2.0))
    policy = Policy(waiting_served_ratio=0.0, max_prefill_stall_s=1.0)
    batcher: Batcher[str] = Batcher(backend, policy, clock=lambda: now[0])
    batcher.submit("a", ask(1, 2, new=20))
    turn(batcher)
    batcher.submit("b", ask(1, 2, new=20))
    batcher.submit("c", ask(1, 2))
    turning = batcher.turn()
    next(turning)  # a has now stood still for longer than the bound
    batcher.cancel("a")
    batcher.cancel("b")
    assert [key for outcome in turning for key, _ in outcome.tokens] == ["c", "c"]


def test_first_tokens_are_handed_out_prompt_by_prompt() -> None:
    backend = ModelBackend(4, 24)
    batcher: Batcher[str] = Batcher(backend, EAGER)
    batcher.submit("a", ask(1, 2))
    batcher.submit("b", ask(3, 4))
    turning = batcher.turn()
    assert [key for key, _ in next(turning).tokens] == ["a"]
    assert [call for call, _ in backend.calls] == ["prefill"]
    assert [key for key, _ in next(turning).tokens] == ["b"]
    assert sorted(key for key, _ in next(turning).tokens) == ["a", "b"]


@pytest.mark.parametrize("mode", MODES)
def test_cancelled_while_queued_never_prefills(mode: str) -> None:
    backend = ModelBackend(1, 24, mode=mode)
    batcher: Batcher[str] = Batcher(backend, EAGER)
    for key in "abc":
        batcher.submit(key, ask(1, 2, ord(key) - 90))
    turn(batcher)
    batcher.cancel("b")
    assert batcher.queued == 1
    seen = set()
    while not batcher.idle:
        seen |= set(turn(batcher))
    assert seen == {"a", "c"}


def test_cancelled_between_two_prefills_of_a_group_is_gone_before_the_decode() -> None:
    backend = ModelBackend(4, 24)
    batcher: Batcher[str] = Batcher(backend, EAGER)
    for key in "abc":
        batcher.submit(key, ask(1, 2))
    turning = batcher.turn()
    next(turning)
    batcher.cancel("a")
    batcher.cancel("b")
    assert [key for outcome in turning for key, _ in outcome.tokens] == ["c", "c"]
    assert [rows for call, rows in backend.calls if call == "decode"] == [[(0, 2)]]


def test_all_cancelled_in_the_middle_of_a_group_leaves_nothing_to_decode() -> None:
    backend = ModelBackend(4, 24)
    batcher: Batcher[str] = Batcher(backend, EAGER)
    batcher.submit("a", ask(1, 2))
    batcher.submit("b", ask(1, 2))
    turning = batcher.turn()
    next(turning)
    batcher.cancel("a")
    batcher.cancel("b")
    assert list(turning) == []
    assert batcher.idle


def test_what_can_never_run_is_refused_at_once_and_takes_no_place() -> None:
    batcher: Batcher[str] = Batcher(ModelBackend(1, 24, prompt=3), EAGER)
    with pytest.raises(ValidationError):
        batcher.submit("a", ask(1, 2, 3, 4))
    assert batcher.idle


def test_a_queue_too_short_waits_for_company_until_its_time_has_come() -> None:
    backend = ModelBackend(8, 60)
    policy = Policy(waiting_served_ratio=0.5, max_waiting_tokens=5)
    batcher: Batcher[str] = Batcher(backend, policy)
    for i in range(4):
        batcher.submit(str(i), ask(1, 2, new=50))
    turn(batcher)
    batcher.submit("late", ask(3, 4))
    turns = 0
    while "late" not in turn(batcher):
        turns += 1
    assert turns == 3  # steps 2 .. 4; the fifth is the one it joins
