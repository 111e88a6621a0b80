"""Sampling as a device does it: the rules of optimum-neuron 0.4.5, seen through the tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from neuron_server.backend import GREEDY, DecodeRow, DeviceSampling, Output, PrefillRow
from neuron_server.backends.fake import FakeBackend
from neuron_server.backends.on_device import NO_TOKEN, OnDeviceSampling, choose
from neuron_server.errors import BadSamplingError, LiveSlotOmittedError, SlotBusyError
from neuron_server.shape import StaticShape

#: The example of the specification of the device's top_p: ids 4, 1, 3, 0 from the likeliest on.
SHARES = {4: 0.5, 1: 0.3, 3: 0.15, 0: 0.05}


def logits_of(shares: dict[int, float], vocab: int = 5) -> np.ndarray:
    row = np.full((1, vocab), -np.inf, np.float32)
    for token, share in shares.items():
        row[0, token] = np.log(share)
    return row


def draws(
    sampling: DeviceSampling, count: int = 2000, logits: np.ndarray | None = None, max_top_k: int = 256
) -> Counter[int]:
    rows = np.repeat(logits_of(SHARES) if logits is None else logits, count, axis=0)
    random = np.random.default_rng(5)
    return Counter(choose(rows, [sampling] * count, min(max_top_k, rows.shape[1]), random).tolist())


def fake(**options: object) -> FakeBackend:
    return FakeBackend(100, StaticShape(4, 24), 12, **options)


@pytest.mark.group(14)
@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.6, {4}), (0.9, {4, 1}), (0.97, {4, 1, 3}), (1.0, {4, 1, 3, 0}), (0.1, {4}), (2.0**-126, {4})],
)
def test_top_p_drops_the_token_that_crosses_it_but_keeps_the_first(top_p: float, kept: set[int]) -> None:
    """Transformers, and TGI with it, would keep {4, 1} at 0.6 and {4, 1, 3} at 0.9."""
    assert set(draws(DeviceSampling(5, top_p, 1.0))) == kept


def test_draws_follow_the_shares_of_what_is_kept() -> None:
    count = 20_000
    drawn = draws(DeviceSampling(5, 0.9, 1.0), count)
    assert drawn[4] / count == pytest.approx(0.5 / 0.8, abs=0.015)
    assert drawn[1] / count == pytest.approx(0.3 / 0.8, abs=0.015)


def test_temperature_comes_before_top_p() -> None:
    """Cold enough, the first token alone passes the threshold; hot, four of them are needed."""
    assert set(draws(DeviceSampling(5, 0.9, 0.2))) == {4}
    assert set(draws(DeviceSampling(5, 0.9, 8.0))) == {4, 1, 3}


def test_top_k_comes_first_and_the_device_never_looks_beyond_its_widest() -> None:
    assert set(draws(DeviceSampling(2, 1.0, 1.0))) == {4, 1}
    flat = np.zeros((1, 400), np.float32)
    flat[0, 300] = 1e-3
    assert len(draws(DeviceSampling(3, 1.0, 1.0), logits=flat, max_top_k=3)) == 3
    assert len(draws(DeviceSampling(256, 1.0, 1.0), 9000, logits=flat)) == 256
    assert 300 in draws(DeviceSampling(256, 1.0, 1.0), 9000, logits=flat)


def test_the_coldest_and_the_hottest_rows_have_a_token() -> None:
    for temperature in (2.0**-126, 3.4028234663852886e38):
        assert set(draws(DeviceSampling(5, 1.0, temperature))) <= set(range(5))
    assert set(draws(DeviceSampling(5, 1.0, 2.0**-126))) == {4}


def test_greedy_is_the_largest_logit_and_the_lowest_id_among_equals() -> None:
    logits = np.array([[0.0, 3.0, 3.0], [5.0, 5.0, 4.0]], np.float32)
    random = np.random.default_rng(0)
    assert choose(logits, [GREEDY, DeviceSampling()], 3, random).tolist() == [1, 0]
    assert choose(logits, [DeviceSampling(1, 1.0, 0.5)] * 2, 3, random).tolist() == [1, 0]


@pytest.mark.parametrize("wish", [GREEDY, DeviceSampling(5, 1.0, 1.0)])
def test_a_row_without_a_distribution_chooses_no_token_and_harms_nobody(wish: DeviceSampling) -> None:
    logits = np.repeat(logits_of(SHARES), 4, axis=0)
    logits[1, 2], logits[2], logits[3, 0] = np.nan, -np.inf, np.inf
    tokens = choose(logits, [wish] * 4, 5, np.random.default_rng(0)).tolist()
    assert tokens[0] in SHARES
    assert tokens[1:] == [NO_TOKEN] * 3


@pytest.mark.group(15)
def test_a_row_knows_nothing_of_the_parameters_beside_it() -> None:
    rows = np.repeat(logits_of(SHARES), 6, axis=0)
    wishes = [GREEDY, DeviceSampling(5, 0.6, 1.0), DeviceSampling(2, 1.0, 1.0), DeviceSampling(5, 1.0, 9.0)]
    wishes += [DeviceSampling(5, 0.9, 1.0), GREEDY]
    random = np.random.default_rng(3)
    seen: list[set[int]] = [set() for _ in wishes]
    for _ in range(600):
        for place, token in enumerate(choose(rows, wishes, 5, random).tolist()):
            seen[place].add(token)
    assert seen == [{4}, {4}, {4, 1}, {4, 1, 3, 0}, {4, 1}, {4}]


# -- around a backend ----------------------------------------------------------------------------------------


def text(backend: OnDeviceSampling, sampling: DeviceSampling, new: int = 10) -> list[int]:
    tokens = [1, 2, 3]
    output = backend.prefill([PrefillRow(0, tokens, sampling=sampling)])
    for _ in range(new):
        assert output.logits.shape == (1, 0)
        assert output.tokens is not None
        tokens.append(int(output.tokens[0]))
        output = backend.decode([DecodeRow(0, tokens[-1], len(tokens) - 1, sampling)])
    return tokens


@pytest.mark.group(13)
def test_greedy_tokens_are_the_argmax_of_the_backend_inside() -> None:
    inside = fake()
    expected = [1, 2, 3]
    logits = inside.prefill([PrefillRow(0, expected)]).logits
    for _ in range(10):
        expected.append(int(logits[0].argmax()))
        logits = inside.decode([DecodeRow(0, expected[-1], len(expected) - 1)]).logits
    assert text(OnDeviceSampling(fake()), GREEDY) == expected


def test_the_same_seed_draws_the_same_text_and_without_one_nothing_is_repeatable() -> None:
    wide = DeviceSampling(100, 1.0, 50.0)
    assert text(OnDeviceSampling(fake(), seed=4), wide) == text(OnDeviceSampling(fake(), seed=4), wide)
    assert text(OnDeviceSampling(fake()), wide) != text(OnDeviceSampling(fake()), wide)


def test_it_says_what_it_is() -> None:
    info = OnDeviceSampling(fake()).info
    assert (info.output, info.max_top_k, info.can_score_prompt, info.samples) == ("tokens", 100, False, True)
    assert OnDeviceSampling(fake(), max_top_k=7).info.max_top_k == 7
    assert (info.shape, info.vocab_size, info.device) == (fake().info.shape, 100, "fake")


def test_only_logits_can_be_sampled() -> None:
    with pytest.raises(ValueError, match="hands over tokens"):
        OnDeviceSampling(OnDeviceSampling(fake()))


def test_a_wish_to_score_the_prompt_costs_nothing() -> None:
    class Counting(FakeBackend):
        asked = 0

        def prefill(self, rows: Sequence[PrefillRow]) -> Output:
            self.asked += sum(row.prompt_logprobs for row in rows)
            return super().prefill(rows)

    inside = Counting(100, StaticShape(4, 24), 12)
    output = OnDeviceSampling(inside).prefill([PrefillRow(0, [1, 2], prompt_logprobs=True)])
    assert (list(output.prompt_logprobs), inside.asked) == ([], 0)
    assert output.positions == 12


@pytest.mark.group(12)
@pytest.mark.parametrize(
    "wish",
    [
        *[DeviceSampling(top_k) for top_k in (0, -1, 101, True, 1.5, 5.0)],
        *[DeviceSampling(5, top_p) for top_p in (0.0, 1.1, -0.5, float("nan"), 1e-46)],
        *[DeviceSampling(5, 1.0, t) for t in (0.0, -1.0, float("nan"), float("inf"), 1e39)],
    ],
)
def test_bad_rows_are_refused_before_the_backend_is_touched(wish: DeviceSampling) -> None:
    backend = OnDeviceSampling(fake())
    with pytest.raises(BadSamplingError, match="slot 1: "):
        backend.prefill([PrefillRow(0, [1, 2]), PrefillRow(1, [1, 2], sampling=wish)])
    backend.prefill([PrefillRow(0, [1, 2]), PrefillRow(1, [1, 2])])
    with pytest.raises(BadSamplingError, match="slot 1: "):
        backend.decode([DecodeRow(0, 1, 2), DecodeRow(1, 1, 2, wish)])
    backend.decode([DecodeRow(0, 1, 2), DecodeRow(1, 1, 2)])


def test_refusals_and_slots_are_those_of_the_backend_inside() -> None:
    backend = OnDeviceSampling(fake())
    backend.prefill([PrefillRow(0, [1, 2])])
    with pytest.raises(SlotBusyError):
        backend.prefill([PrefillRow(0, [1, 2])])
    with pytest.raises(LiveSlotOmittedError):
        backend.decode([])
    backend.release([0])
    output = backend.decode([])
    assert output.tokens is not None
    assert (output.tokens.shape, output.logits.shape) == ((0,), (0, 0))
    backend.close()
