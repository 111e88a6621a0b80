from dataclasses import replace

import numpy as np
import pytest
from conformance import NO_SHARD_RPC
from device_backend import Choose, DeviceBackend
from model_backend import ModelBackend

from neuron_server.backend import Output
from neuron_server.engine.warmup import warm_up
from neuron_server.errors import ModelError

MODES = ["insert", "rebuild"]


@pytest.mark.case(180, deviation=NO_SHARD_RPC)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("slots", "length"), [(1, 2), (1, 3), (4, 2), (5, 20), (32, 64)])
def test_runs_every_path_and_leaves_every_slot_free(mode: str, slots: int, length: int) -> None:
    backend = ModelBackend(slots, length, mode=mode)
    warm_up(backend)
    assert not backend.live
    kinds = {call for call, _ in backend.calls}
    assert kinds == ({"decode"} if mode == "insert" and length == 2 else {"prefill", "decode"})
    widths = {len(rows) for call, rows in backend.calls if call == "decode"}
    assert {1, slots} <= widths


@pytest.mark.parametrize("mode", MODES)
def test_prefills_have_a_prompt_of_several_tokens_so_that_the_graph_of_prompts_runs(mode: str) -> None:
    backend = ModelBackend(2, 40, mode=mode)
    warm_up(backend)
    lengths = {length for call, rows in backend.calls if call == "prefill" for _, length in rows}
    assert min(lengths) > 1


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_makes_nan_is_refused(mode: str) -> None:
    class Broken(ModelBackend):
        def decode(self, rows: object) -> Output:
            output = super().decode(rows)
            output.logits[-1, 3] = np.nan
            return output

    with pytest.raises(ModelError, match="not finite"):
        warm_up(Broken(4, 16, mode=mode))


def test_logits_of_the_wrong_width_are_refused() -> None:
    class Padded(ModelBackend):
        def decode(self, rows: object) -> Output:
            return Output(super().decode(rows).logits[:, :-1])

    with pytest.raises(ModelError, match=r"\(1, 49\), expected \(1, 50\)"):
        warm_up(Padded(4, 16))


def test_masked_logits_are_fine() -> None:
    class Masked(ModelBackend):
        def decode(self, rows: object) -> Output:
            output = super().decode(rows)
            output.logits[:, 10:] = -np.inf
            return output

    warm_up(Masked(4, 16))


@pytest.mark.parametrize("mode", MODES)
def test_a_device_that_samples_is_warmed_up_by_its_tokens(mode: str) -> None:
    backend = DeviceBackend(5, 20, mode=mode)
    warm_up(backend)
    assert not backend.live
    assert {len(call) for call in backend.asked} >= {1, 2, 4, 5}


@pytest.mark.parametrize(
    ("choose", "sentence"),
    [
        (lambda slots, logits: np.full(len(slots), 50), "chooses token 50 of a vocabulary of 50"),
        (lambda slots, logits: np.full(len(slots), -1), "chooses token -1"),
        (lambda slots, logits: np.zeros((len(slots), 1)), r"shape \(1, 1\), expected \(1,\)"),
        (lambda slots, logits: np.zeros(7), r"shape \(7,\), expected \(1,\)"),
    ],
)
def test_a_device_that_chooses_no_token_of_the_vocabulary_is_refused(choose: Choose, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        warm_up(DeviceBackend(4, 16, choose=choose))


def test_a_device_that_samples_and_hands_over_logits_is_refused() -> None:
    backend = ModelBackend(4, 16)
    backend.info = replace(backend.info, output="tokens", max_top_k=16)
    with pytest.raises(ModelError, match="tokens of shape None"):
        warm_up(backend)
