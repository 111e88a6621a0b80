"""What comes with the outputs: who may write to them, scores of prompts, and what a forward cost."""

from __future__ import annotations

import numpy as np
import pytest
from contract.checked_batch import CLOSE, Alone
from contract.world import B, C, T, World

from neuron_server.backend import Backend, DecodeRow, PrefillRow


@pytest.mark.group(1)
@pytest.mark.only(output="logits")
def test_the_caller_may_write_to_the_logits(backend: Backend, alone: Alone) -> None:
    logits = backend.prefill([PrefillRow(0, [1, 2, 3])]).logits
    logits[:] = 0
    logits = backend.decode([DecodeRow(0, 4, 3)]).logits
    np.testing.assert_allclose(logits[0], alone([1, 2, 3, 4])[-1], atol=CLOSE)
    logits[:] = 0


@pytest.mark.group(1)
def test_prompts_are_scored_when_asked_where_that_is_possible(backend: Backend, alone: Alone) -> None:
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    output = backend.prefill([PrefillRow(1, text, prompt_logprobs=True), PrefillRow(0, text[:3])])
    if not backend.info.can_score_prompt:
        assert not any(scores is not None for scores in output.prompt_logprobs)
        return
    assert output.prompt_logprobs[1] is None
    every = alone(text).astype(np.float64)
    scored = zip(every, text[1:], strict=False)
    expected = [row[token] - np.log(np.exp(row - row.max()).sum()) - row.max() for row, token in scored]
    np.testing.assert_allclose(output.prompt_logprobs[0], expected, atol=CLOSE)
    assert output.prompt_logprobs[0].dtype == np.float32
    np.testing.assert_allclose(output.logits[0], every[-1], atol=CLOSE)


@pytest.mark.group(18)
def test_the_positions_that_were_computed_include_the_padding(world: World, backend: Backend) -> None:
    """Rows of tokens of a compiled graph are full; fast on the CPU computes what lies between live slots."""
    filled = backend.prefill([PrefillRow(0, [1, 2, 3]), PrefillRow(2, [4, 5])])
    stepped = backend.decode([DecodeRow(0, 6, 3), DecodeRow(2, 7, 2)])
    if not world.subject.bitwise:
        assert (filled.positions, stepped.positions) == (5, 3)
        return
    # A model without a context graph is prefilled column by column, as far as the longest text goes.
    widths = (3, C, T) if world.subject.shared_column else (C, T)
    assert filled.positions in (0, *(n * width for n in (2, B) for width in widths))
    assert stepped.positions in (0, B)
