import pytest

from neuron_server.engine.slot import Slot
from neuron_server.engine.warp import Choice
from neuron_server.event import FinishReason
from neuron_server.request import GenerationRequest, SamplingParams


def slot(**options: object) -> Slot[str]:
    values = {"input_ids": (1, 2, 3), "prompt_length": 3, "max_new_tokens": 2} | options
    return Slot("a", GenerationRequest(**values), queue_s=0.5)


def test_the_first_event_alone_carries_queue_time_and_prompt_logprobs() -> None:
    row = slot()
    row.prompt_logprobs = (None, -1.0, -2.0)
    first, second = row.accept(Choice(7, -0.1)), row.accept(Choice(8, -0.2))
    assert (first.queue_s, first.prompt_logprobs) == (0.5, (None, -1.0, -2.0))
    assert (second.queue_s, second.prompt_logprobs) == (None, None)


@pytest.mark.parametrize(
    ("tokens", "finishes"),
    [
        ([7, 8], [None, FinishReason.LENGTH]),
        ([9], [FinishReason.EOS_TOKEN]),
        ([7, 9], [None, FinishReason.LENGTH]),  # TGI looks at the count first
    ],
)
def test_finish(tokens: list[int], finishes: list[FinishReason | None]) -> None:
    row = slot(stop_ids=frozenset({9, 10}))
    assert [row.accept(Choice(token, -0.1)).finish for token in tokens] == finishes


def test_a_resumed_request_goes_on_counting() -> None:
    row = slot(input_ids=(1, 2, 3, 4, 5), prompt_length=3)
    assert row.sample_row().index == 2
    row.accept(Choice(6, -0.1))
    assert row.sample_row().index == 3
    assert row.accept(Choice(6, -0.1)).finish is FinishReason.LENGTH


def test_counts_exist_only_for_penalties_and_grow() -> None:
    assert slot().sample_row().counts is None
    row = slot(sampling=SamplingParams(frequency_penalty=1.0))
    row.accept(Choice(3, -0.1))
    assert row.counts is not None
    assert dict(zip(row.counts.ids.tolist(), row.counts.counts.tolist(), strict=True)) == {1: 1, 2: 1, 3: 2}
