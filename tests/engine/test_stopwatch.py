"""Passes: what is measured of each call of the backend, by whom it was asked for, and what it cost others."""

from __future__ import annotations

import pytest
from model_backend import ModelBackend

from neuron_server.engine.batcher import Batcher
from neuron_server.engine.engine import Engine, Joiner
from neuron_server.engine.schedule import Policy
from neuron_server.errors import BackendError, DeviceFailedError
from neuron_server.request import GenerationRequest
from neuron_server.session import Pass

EAGER = Policy(waiting_served_ratio=0.0, max_waiting_tokens=3, max_prefill_stall_s=60.0)


def ask(*tokens: int, new: int = 20) -> GenerationRequest:
    return GenerationRequest(tokens, len(tokens), new)


class Measured:
    """A batcher whose calls of the backend take 2 s (prefill) and 0.5 s (decode)."""

    def __init__(self, backend: ModelBackend, policy: Policy = EAGER) -> None:
        self.now = 0.0
        self.passes: list[Pass] = []
        backend.on_prefill = lambda _: self.spend(2.0)
        backend.on_decode = lambda _: self.spend(0.5)
        self.backend = backend
        self.batcher: Batcher[str] = Batcher(
            backend, policy, clock=lambda: self.now, on_pass=self.passes.append
        )

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def submit(self, *requests: GenerationRequest) -> None:
        for request in requests:
            self.batcher.submit(str(request.input_ids), request)

    def turn(self) -> list[Pass]:
        self.passes.clear()
        for _ in self.batcher.turn():
            pass
        return self.passes[:]


def test_an_inserting_batch_has_one_pass_per_prompt_and_one_per_step() -> None:
    one = Measured(ModelBackend(4, 30))
    one.submit(ask(1, 2, 3), ask(4, 5))
    assert one.turn() == [
        Pass("prefill", rows=1, joined=1, forward_s=2.0, tokens=3),
        Pass("prefill", rows=1, joined=1, forward_s=2.0, tokens=2, stalled=1),
        Pass("decode", rows=2, forward_s=0.5, tokens=2),
    ]


def test_a_rebuilding_batch_prefills_everyone_once_and_everyone_stood_still() -> None:
    one = Measured(ModelBackend(4, 30, mode="rebuild"))
    one.submit(ask(1, 2, 3), ask(4, 5))
    assert one.turn()[0] == Pass("prefill", rows=2, joined=2, forward_s=2.0, tokens=5)
    one.submit(ask(6))
    joining = one.turn()[0]
    assert (joining.rows, joining.joined, joining.stalled) == (3, 1, 2)
    assert joining.tokens == (3 + 1) + (2 + 1) + 1


def test_only_the_first_pass_of_a_group_that_joins_says_why_it_could() -> None:
    one = Measured(ModelBackend(6, 30))
    one.submit(ask(1, 2))
    assert [p.concat for p in one.turn()] == ["", ""]  # nothing ran that it could join
    one.submit(ask(3, 4), ask(5, 6))
    assert [p.concat for p in one.turn()] == ["backpressure", "", ""]
    assert [p.concat for p in one.turn() + one.turn()] == ["", ""]
    one.submit(ask(7, 8))
    assert [p.concat for p in one.turn()] == ["wait_exceeded", ""]


def test_a_one_token_prompt_joins_by_the_decode_that_takes_it_in() -> None:
    one = Measured(ModelBackend(4, 30))
    one.submit(ask(9))
    assert one.turn() == [Pass("decode", rows=1, joined=1, forward_s=0.5, tokens=1)]
    one.submit(ask(8))
    assert one.turn() == [Pass("decode", 2, joined=1, forward_s=0.5, tokens=2, concat="backpressure")]
    assert one.turn() == [Pass("decode", 2, forward_s=0.5, tokens=2)]


def test_a_refused_prefill_is_a_failed_pass_and_joins_nothing() -> None:
    one = Measured(ModelBackend(4, 30))
    one.submit(ask(1, 2))
    one.turn()

    def refuse(rows: object) -> None:
        one.spend(2.0)
        raise BackendError("no")

    one.backend.on_prefill = refuse
    one.submit(ask(3, 4))
    failed, decode = one.turn()
    assert failed == Pass("prefill", rows=1, forward_s=2.0, stalled=1, failed=True)
    assert decode.concat == ""
    one.backend.on_prefill = lambda _: None
    assert [p.concat for p in one.turn()] == [""]  # the refused group's reason is not kept for later


def test_the_pass_that_a_device_dies_in_is_told_too() -> None:
    passes: list[Pass] = []
    backend = ModelBackend(2, 30)
    engine: Engine[str] = Engine(backend, clock=lambda: 0.0, on_pass=passes.append)
    engine.place([Joiner("a", ask(1, 2), 0.0)])
    backend.on_decode = lambda _: backend.fail()
    with pytest.raises(DeviceFailedError):
        engine.step()
    assert passes[1:] == [Pass("decode", rows=1, failed=True)]


def test_choosing_tokens_is_timed_apart_from_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Measured(ModelBackend(2, 30))
    choose = Engine._choose

    def slowly(*arguments: object) -> None:
        one.spend(0.25)
        choose(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "_choose", slowly)
    one.submit(ask(1, 2))
    assert [(p.forward_s, p.sampling_s) for p in one.turn()] == [(2.0, 0.25), (0.5, 0.25)]


def test_nothing_is_measured_where_nothing_runs() -> None:
    one = Measured(ModelBackend(2, 30))
    assert one.turn() == []
    one.submit(ask(1, 2))
    one.turn()
    one.batcher.cancel("(1, 2)")
    assert one.turn() == []
