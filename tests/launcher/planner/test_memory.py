from __future__ import annotations

import pytest
from planner import plans

from launcher.device.heads import split_heads
from launcher.planner.memory import (
    GRAPH_BYTES,
    MICROCODE_BYTES,
    PROCESS_BYTES,
    Load,
    core_memory,
    host_memory,
)
from neuron_server.shape import StaticShape

PARAMETERS_8B = 8_030_261_248


def account(path, parameters, tensor_parallel, slots, length=4096, **load):
    _, sizes = plans.dimensions(path)
    split = split_heads(sizes.heads, sizes.kv_heads, tensor_parallel)
    width = load.get("prefill_width", length)
    shape = StaticShape(slots, length)
    return core_memory(
        sizes, parameters, split, tensor_parallel, Load(shape, width, load.get("prefill_rows", 1), 2)
    )


def test_llama_8b_on_eight_cores_is_two_gib_of_cache_and_two_gb_of_weights(tmp_path):
    """The example that is written down for optimum-neuron 0.4.5: 32 slots of 4096, bf16."""
    memory = account(plans.directory(tmp_path, plans.LLAMA_8B), PARAMETERS_8B, 8, 32)
    assert memory.cache == 2 * 2**30
    assert memory.weights == pytest.approx(2.0e9, rel=0.01)


def test_cores_beyond_the_kv_heads_do_not_shrink_the_cache(tmp_path):
    path = plans.directory(tmp_path, plans.LLAMA_8B)
    assert account(path, PARAMETERS_8B, 24, 32).cache == account(path, PARAMETERS_8B, 8, 32).cache


def test_replicated_and_padded_heads_are_weights_too(tmp_path):
    path = plans.directory(tmp_path, plans.LLAMA_70B)
    file = 70_553_706_496
    added = 80 * 8192 * 128 * 2 * ((72 - 64) + (24 - 8))
    assert account(path, file, 24, 8).weights == -(-(file + added) // 24) * 2


def test_a_tied_output_layer_is_a_second_tensor_on_the_device(tmp_path):
    tied = plans.directory(tmp_path, plans.LLAMA_8B, tie_word_embeddings=True)
    more = account(tied, PARAMETERS_8B, 1, 1).weights
    plain = plans.directory(tmp_path, plans.LLAMA_8B)
    assert more - account(plain, PARAMETERS_8B, 1, 1).weights == 128256 * 4096 * 2


def test_the_working_memory_has_its_floor_and_grows_with_the_prefill(tmp_path):
    path = plans.directory(tmp_path, plans.LLAMA_8B)
    one, two = (account(path, PARAMETERS_8B, 8, 8, 8192, prefill_width=w).reserve for w in (4096, 8192))
    assert MICROCODE_BYTES + GRAPH_BYTES < one < two
    rows = account(path, PARAMETERS_8B, 8, 8, prefill_rows=8).reserve
    assert rows > account(path, PARAMETERS_8B, 8, 8).reserve


def test_scores_are_kept_below_the_width_of_the_flash_kernel(tmp_path):
    path = plans.directory(tmp_path, plans.LLAMA_8B)
    below, at = (account(path, PARAMETERS_8B, 1, 1, 8192, prefill_width=w).reserve for w in (4095, 4096))
    assert below > at


def test_the_room_is_what_fills_nine_tenths_of_a_core(tmp_path):
    path = plans.directory(tmp_path, plans.LLAMA_8B)
    memory = account(path, PARAMETERS_8B, 8, 32)
    per_token = 2 * 32 * 128 * 2  # layers x head_dim x 2 bytes, keys and values, one KV head for each core
    assert memory.room_tokens == (int(0.9 * 16e9) - memory.weights - memory.reserve) // per_token
    assert account(path, PARAMETERS_8B, 1, 1).room_tokens == 0


def test_stored_weights_may_be_mapped_and_need_not_be_copied():
    host = host_memory(16 * 10**9, 3, stored=True)
    assert host.least == 3 * PROCESS_BYTES
    assert host.most == 3 * (PROCESS_BYTES + 16 * 10**9)


def test_weights_that_are_cut_at_load_are_in_memory_at_once_beside_the_checkpoint():
    host = host_memory(16 * 10**9, 3, stored=False)
    assert host.least == 3 * (PROCESS_BYTES + 16 * 10**9)
    assert host.most == 3 * (PROCESS_BYTES + 32 * 10**9)


def test_three_accounts_to_the_byte_by_hand(tmp_path):
    """Parameters x 2 / cores; 2 x layers x slots x KV heads x length x head size x 2; 96 MB + 1 GB + the
    widest layer of a prefill + a row of 4-byte logits for each slot."""
    llama = account(plans.directory(tmp_path, plans.LLAMA_8B), PARAMETERS_8B, 8, 32)
    assert llama.weights == 2_007_565_312  # 8,030,261,248 / 8 x 2
    assert llama.cache == 2 * 32 * 32 * 1 * 4096 * 128 * 2
    activations = 4096 * (4 * 4096 + 3 * 14336 // 8 + (32 + 2 * 8) // 8 * 128) * 2
    assert llama.reserve == 96_000_000 + 1_000_000_000 + activations + 32 * 128256 * 4
    assert llama.total == 5_452_015_104
    large = account(plans.directory(tmp_path, plans.LLAMA_70B), 70_553_706_496, 24, 8)
    padded = 80 * 8192 * 128 * 2 * (8 + 16)  # 8 attention heads for queries and output, 16 of keys and values
    assert large.weights == -(-(70_553_706_496 + padded) // 24) * 2
    assert large.cache == 2 * 80 * 8 * 1 * 4096 * 128 * 2
    qwen = account(plans.directory(tmp_path, plans.QWEN_7B), 7_615_616_512, 8, 32)
    padded = 28 * 3584 * 128 * 2 * (4 + 4)
    assert qwen.weights == (7_615_616_512 + padded) // 8 * 2
    assert qwen.cache == 2 * 28 * 32 * 1 * 4096 * 128 * 2
