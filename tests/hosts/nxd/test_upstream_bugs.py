"""What happens below if a caller does not keep the rules of ``Backend``: each rule has its test here.

These run optimum-neuron's own code on CPU (see ``subject.py``). The figures are differences of logits from
transformers' own on the tiny model; a right call is within ``EXACT``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract.subject import Wanted
from hosts.nxd import tiny_model, upstream
from hosts.nxd.tiny_model import alone

from neuron_server.shape import StaticShape

B, T, C = 4, 32, 20
#: Right logits differ from transformers' by less, and wrong ones by more than ``OFF``.
EXACT, OFF = 1e-4, 1e-2

only_030 = pytest.mark.skipif(upstream.installed() != "0.3.0", reason="0.4.4 dropped the helpers")

Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Upstream's own model object."""

    def load(**wanted: Any) -> Any:
        tiny_model.write_model(tmp_path, Wanted(StaticShape(B, T), C, **wanted))
        with upstream.fake_device():
            from optimum.neuron import NeuronModelForCausalLM

            return NeuronModelForCausalLM.from_pretrained(str(tmp_path))

    return load


def result(output: Any) -> np.ndarray:
    tensor = output if isinstance(output, torch.Tensor) else output[0]
    return tensor.numpy()


def call(model: Any, tokens: Sequence[Sequence[int]], positions: Any, slots: Sequence[int]) -> np.ndarray:
    """Logits (n, V) of a direct call."""
    output = model(
        input_ids=torch.tensor(tokens),
        position_ids=torch.tensor(positions),
        seq_ids=torch.tensor(slots),
        sampling_params=torch.ones(len(slots), 3),
    )
    return result(output)[:, 0]


def prefill(model: Any, slot: int, tokens: list[int]) -> np.ndarray:
    return call(model, [tokens], [list(range(len(tokens)))], [slot])[0]


def decode(model: Any, *rows: tuple[int, int, int]) -> np.ndarray:
    """Rows of (slot, token, position)."""
    return call(model, [[t] for _, t, _ in rows], [[p] for _, _, p in rows], [s for s, _, _ in rows])


def off(logits: np.ndarray, text: list[int]) -> float:
    return float(np.abs(logits - alone(text)[-1]).max())


FIVE, THREE = [11, 12, 13, 14, 15], [21, 22, 23]


# -- the two bugs of the releases that TGI used ------------------------------------


@only_030
def test_bug_a_the_helper_of_0_3_lets_each_decode_attend_to_a_stale_column(load: Load) -> None:
    """Its mask counts the token that is just entering; the graph wants those that have entered already."""
    model = load()
    prefill(model, 0, FIVE)
    inputs = model.prepare_inputs_for_decode(
        torch.tensor([[*FIVE, 16]]),
        torch.ones(1, 6, dtype=torch.int64),
        seq_ids=torch.tensor([0]),
        sampling_params=torch.ones(1, 3),
    )
    assert inputs["position_ids"].tolist() == [[5]]
    assert off(result(model(**inputs))[0, 0], [*FIVE, 16]) > OFF
    assert off(decode(model, (0, 16, 5))[0], [*FIVE, 16]) < EXACT  # no mask: upstream makes the right one


@only_030
def test_bug_b_left_padding_changes_the_shorter_prompt_of_a_batch(load: Load) -> None:
    """TGI pads on the left; the helper makes positions for that, but the graph looks at columns."""
    model = load()
    inputs = model.prepare_inputs_for_prefill(
        torch.tensor([FIVE, [0, 0, *THREE]]),
        torch.tensor([[1] * 5, [0, 0, 1, 1, 1]]),
        seq_ids=torch.tensor([0, 1]),
        sampling_params=torch.ones(2, 3),
    )
    long, short = result(model(**inputs))[:, 0]
    assert off(long, FIVE) < EXACT
    assert off(short, THREE) > OFF


@only_030
def test_with_buckets_a_prompt_that_holds_pad_tokens_is_cut_short() -> None:
    """The graph of a prompt is chosen by how many of its tokens are not the pad token."""
    upstream.stand_in()
    from optimum.neuron.models.inference.backend.modules import autobucketing

    tokens = torch.tensor([[5, 0, 0, 6, 0, 0, 7] + [0] * 9], dtype=torch.int32)
    buckets = autobucketing.generate_buckets(4, 16)
    assert buckets == [4, 8, 16]
    [cut], _ = autobucketing.get_context_encoder_bk()([tokens], torch.tensor(buckets), "right", 0)
    assert cut.tolist() == [[5, 0, 0, 6]]


def test_left_padding_changes_the_prompt_in_every_release(load: Load) -> None:
    model = load()
    logits = call(model, [FIVE, [0, 0, *THREE]], [[0, 1, 2, 3, 4], [1, 1, 0, 1, 2]], [0, 1])
    assert off(logits[1], THREE) > OFF


def test_the_helpers_are_gone_where_they_were_mended() -> None:
    assert hasattr(upstream.model_class(), "prepare_inputs_for_decode") is (upstream.installed() == "0.3.0")


# -- what corrupts a neighbour ------------------------------------


def test_a_live_slot_left_out_of_a_decode_is_overwritten_at_the_first_rows_position(load: Load) -> None:
    model = load()
    prefill(model, 0, FIVE)
    prefill(model, 3, THREE)
    assert off(decode(model, (3, 24, 3))[0], [*THREE, 24]) < EXACT
    assert off(decode(model, (0, 16, 5))[0], [*FIVE, 16]) > OFF


def test_a_one_token_prompt_prefilled_alone_overwrites_the_first_column_of_all_others(load: Load) -> None:
    model = load()
    prefill(model, 0, FIVE)
    assert off(prefill(model, 2, [9]), [9]) < EXACT
    assert off(decode(model, (0, 16, 5), (2, 8, 1))[0], [*FIVE, 16]) > OFF


def test_a_one_token_prompt_beside_a_longer_one_gets_the_logits_of_its_padding(load: Load) -> None:
    """Upstream pads positions with 1, so the first maximum of the positions is a padding column."""
    model = load()
    logits = call(model, [FIVE, [9, 0, 0, 0, 0]], [[0, 1, 2, 3, 4], [0, 1, 1, 1, 1]], [0, 1])
    assert off(logits[1], [9]) > OFF


def test_a_one_token_prompt_is_right_in_a_decode_at_position_0_and_at_full_width_of_zeros(load: Load) -> None:
    model = load()
    prefill(model, 0, FIVE)
    stepped = decode(model, (0, 16, 5), (2, 9, 0))
    assert off(stepped[0], [*FIVE, 16]) < EXACT
    assert off(stepped[1], [9]) < EXACT
    wide = call(model, [[8] + [0] * (C - 1)], [[0] * C], [1])
    assert off(wide[0], [8]) < EXACT
    assert off(decode(model, (0, 17, 6), (2, 7, 1), (1, 6, 1))[0], [*FIVE, 16, 17]) < EXACT


def test_a_slot_beyond_the_last_is_prefilled_into_the_last(load: Load) -> None:
    """So XLA clamps a slice that would not fit; a device may do otherwise, and says nothing either."""
    model = load()
    prefill(model, B - 1, FIVE)
    prefill(model, B + 3, THREE)
    assert off(decode(model, (B - 1, 16, 5))[0], [*FIVE, 16]) > OFF


def test_a_prompt_longer_than_the_prefill_graph_is_cropped_without_a_word(load: Load) -> None:
    model = load()
    text = list(range(C + 3))
    logits = prefill(model, 0, text)
    assert off(logits, text) > OFF


def test_a_decode_with_a_slot_twice_fails_below(load: Load) -> None:
    model = load()
    with pytest.raises(IndexError):
        decode(model, (0, 1, 0), (0, 2, 0))


def test_without_continuous_batching_a_prefill_of_one_slot_rewrites_all(load: Load) -> None:
    """Row 0 goes to slot 0, whatever slot was named, and is copied to every other."""
    model = load(prefill_mode="rebuild")
    call(model, [FIVE] * B, [list(range(5))] * B, list(range(B)))
    prefill(model, 2, THREE)
    logits = decode(model, *((slot, 16, 5) for slot in range(B)))
    assert all(off(row, [*FIVE, 16]) > OFF for row in logits)


def test_without_continuous_batching_a_decode_of_one_slot_is_computed_as_slot_0(load: Load) -> None:
    model = load(prefill_mode="rebuild")
    texts = [FIVE, THREE, [*THREE, *FIVE], [*FIVE, *THREE]]
    padded = [text + [0] * (8 - len(text)) for text in texts]
    positions = [[*range(len(text))] + [1] * (8 - len(text)) for text in texts]
    logits = call(model, padded, positions, list(range(B)))
    assert all(off(row, text) < EXACT for row, text in zip(logits, texts, strict=True))
    assert off(decode(model, (1, 24, 3))[0], [*THREE, 24]) > OFF


# -- sampling on the device ------------------------------------

PROBABILITIES = [0.5, 0.3, 0.15, 0.05]


@pytest.fixture
def sampler() -> Callable[..., Counter[int]]:
    """Draws tokens of upstream's sampler for one row of logits."""
    upstream.stand_in()
    from optimum.neuron.models.inference.backend.modules.generation.sampling import Sampler

    def draw(logits: torch.Tensor, *row: float, max_top_k: int, draws: int = 300) -> Counter[int]:
        config = upstream.config_class()(on_device_sampling=True, max_topk=max_top_k)
        torch.manual_seed(3)
        many = logits.expand(draws, -1)
        tokens = Sampler(config, do_sample=True)(many, torch.tensor([row] * draws), rank_id=torch.tensor(0))
        return Counter(tokens.tolist())

    return draw


def test_top_k_minus_one_draws_uniformly_from_the_candidates(sampler: Callable[..., Counter[int]]) -> None:
    """It is allowed by upstream's own check, and masks every candidate alike."""
    logits = torch.log(torch.tensor([PROBABILITIES]))
    off_by_design = sampler(logits, -1, 1.0, 1.0, max_top_k=4)
    meant = sampler(logits, 4, 1.0, 1.0, max_top_k=4)
    assert all(50 < off_by_design[token] < 100 for token in range(4))
    assert meant[0] > 120 > 40 > meant[3]


@pytest.mark.parametrize(
    ("top_p", "device", "transformers"),
    [(0.4, {0}, {0}), (0.6, {0}, {0, 1}), (0.9, {0, 1}, {0, 1, 2}), (1.0, {0, 1, 2, 3}, {0, 1, 2, 3})],
)
def test_top_p_leaves_out_the_token_that_crosses_it(
    sampler: Callable[..., Counter[int]], top_p: float, device: set[int], transformers: set[int]
) -> None:
    from transformers import TopPLogitsWarper

    logits = torch.log(torch.tensor([PROBABILITIES]))
    assert set(sampler(logits, 4, top_p, 1.0, max_top_k=4)) == device
    kept = TopPLogitsWarper(top_p)(torch.tensor([[0]]), logits)[0] if top_p < 1 else logits[0]
    assert {token for token in range(4) if kept[token] > -np.inf} == transformers


def test_the_temperature_divides_the_mask_of_top_k_too(sampler: Callable[..., Counter[int]]) -> None:
    """What top_k excludes is set to -3000 before the temperature, so a huge one lets it back in."""
    logits = torch.log(torch.tensor([PROBABILITIES]))
    assert set(sampler(logits, 2, 1.0, 10.0, max_top_k=4)) == {0, 1}
    assert set(sampler(logits, 2, 1.0, 1e6, max_top_k=4)) == {0, 1, 2, 3}


def test_greedy_is_top_k_1_and_draws_the_likeliest_always(sampler: Callable[..., Counter[int]]) -> None:
    logits = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    assert set(sampler(logits, 1, 1.0, 1.0, max_top_k=64)) == {int(logits.argmax())}
