"""Settings and configurations that cannot be: each names what is wrong, none is a traceback."""

from __future__ import annotations

import json

import pytest
from planner import plans

from launcher.planner.prediction import Workload
from launcher.planner.question import Settings
from launcher.planner.text_report import text_report
from neuron_server.errors import ConfigError, ModelError

NXD = {
    "_serialized_key": "NxDNeuronConfig", "batch_size": 4, "max_batch_size": 4, "continuous_batching": True,
    "max_context_length": 4096, "sequence_length": 4096, "tp_degree": 2, "pp_degree": 1, "ep_degree": 1,
    "on_device_sampling": True, "max_topk": 256, "torch_dtype": "bfloat16", "target": "trn1",
    "checkpoint_id": "org/model", "optimum_neuron_version": "0.4.5",
    "neuronxcc_version": "2.21.33363.0+82129205",
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "rule", "text"),
    [
        (Settings(instances=("inf2.2xlarge",)), "argument",
         "must be one of inf2.xlarge, inf2.8xlarge, inf2.24xlarge, inf2.48xlarge"),
        (Settings(num_shard=3), "num_shard", "--num-shard is 3, but Inferentia2 connects 1, 2, 4, 8, 24"),
        (Settings(max_total_tokens=131073), "max_positions", "the model has 131072 positions"),
        (Settings(max_total_tokens=2048, max_input_tokens=2048), "max_input_tokens", "from 1 to 2047"),
        (Settings(dtype="int8"), "argument", "float32, bfloat16, float16"),
        (Settings(prompt_tokens=4000), "argument", "--prompt-tokens 4000 and --new-tokens 250 do not fit"),
        (Settings(new_tokens=4096), "argument", "do not fit a slot of 4096"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_work_is_named(settings, rule, text, tmp_path):
    with pytest.raises(ConfigError) as caught:
        plans.report(tmp_path, plans.LLAMA_8B, settings)
    assert caught.value.rule == rule
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": 1e9}, "num_hidden_layers is 1000000000.0"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers is '32'"),
        ({"num_hidden_layers": None}, "lacks num_hidden_layers"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": 10**30}, "hidden_size is 1000"),
        ({"num_attention_heads": None, "num_key_value_heads": None}, "lacks num_attention_heads"),
        ({"num_attention_heads": 31}, "8 KV heads for 31 attention heads"),
        ({"num_key_value_heads": 64}, "64 KV heads for 32 attention heads"),
        ({"hidden_size": 4097}, "4097, which 32 heads do not divide"),
        ({"head_dim": 10**12}, "head_dim is 1000000000000"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"intermediate_size": -1}, "intermediate_size is -1"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"attention_bias": 1}, "attention_bias is 1"),
    ],
)  # fmt: skip
def test_an_absurd_config_is_corrupt(changes, text, tmp_path):
    with pytest.raises(ModelError) as caught:
        plans.report(tmp_path, plans.LLAMA_8B, **changes)
    assert caught.value.rule == "config_corrupt"
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff\xfe", b"[]", b"{", b"null", b'"text"', b"[" * 100_000, b"1" * 5000]
)
def test_a_config_that_is_no_json_object_is_corrupt(content, tmp_path):
    path = plans.directory(tmp_path, plans.LLAMA_8B)
    (path / "config.json").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        plans.make_report(Settings(), str(path))
    assert caught.value.rule == "config_corrupt"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "falcon"}, "in no release of optimum-neuron; those were: bloom, gpt2, granite"),
        ({"model_type": "gemma3_text"}, "only in its development branch"),
        ({"model_type": "mamba"}, "recurrent state"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized (awq)"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ],
)
def test_what_nobody_serves_is_refused_with_the_reason(changes, reason, tmp_path):
    with pytest.raises(ModelError) as caught:
        plans.report(tmp_path, plans.LLAMA_8B, **changes)
    assert caught.value.rule == "unsupported_model"
    assert reason in str(caught.value)


def test_the_length_is_4096_or_what_the_positions_allow(tmp_path):
    assert plans.report(tmp_path, plans.LLAMA_8B).question.wish.length == 4096
    assert plans.report(tmp_path, plans.GPT2).question.wish.length == 1024


def test_without_positions_the_length_is_what_optimum_neuron_takes(tmp_path):
    """bloom's positions have no bound; it was trained on texts of 2048."""
    report = plans.report(tmp_path, plans.LLAMA_8B, model_type="bloom", num_key_value_heads=32)
    assert report.question.model.facts.max_positions is None
    assert report.question.wish.length == 2048


def test_a_model_of_one_position_is_no_fault_of_a_flag(tmp_path):
    with pytest.raises(ModelError, match="the model has 1 position"):
        plans.report(tmp_path, plans.LLAMA_8B, rope_scaling=None, max_position_embeddings=1)


def test_families_that_sample_on_the_host_on_two_cores_say_so(tmp_path):
    [note] = plans.report(tmp_path, plans.QWEN_7B).question.support.notes
    assert "with 2 cores per replica and several slots optimum-neuron leaves it to the host" in note
    [note] = plans.report(tmp_path, plans.LLAMA_8B).question.support.notes
    assert "2 cores" not in note


def test_the_workload_is_the_published_one_or_smaller_where_a_slot_is_shorter(tmp_path):
    def workload(settings):
        return plans.report(tmp_path, plans.LLAMA_8B, settings).question.workload

    assert workload(Settings()) == Workload(1500, 250)
    assert workload(Settings(max_total_tokens=700)) == Workload(600, 100)
    assert workload(Settings(max_input_tokens=1000)) == Workload(1000, 250)
    assert workload(Settings(max_total_tokens=2)) == Workload(1, 1)
    assert workload(Settings(prompt_tokens=10, new_tokens=20)) == Workload(10, 20)


@pytest.mark.parametrize(
    ("stored", "dtype"), [("float16", "float16"), ("float32", "bfloat16"), (None, "bfloat16")]
)
def test_a_checkpoint_keeps_its_16_bit_type(stored, dtype, tmp_path):
    assert plans.report(tmp_path, plans.LLAMA_8B, torch_dtype=stored).dtype == dtype


# -- compiled models -----------------------------------------------------------------------------------------


def compiled(tmp_path, **changes):
    path = plans.directory(tmp_path, plans.LLAMA_8B)
    (path / "neuron_config.json").write_text(json.dumps({**NXD, **changes}))
    return str(path)


def test_a_compiled_model_has_its_own_configuration_only(tmp_path):
    report = plans.make_report(Settings(), compiled(tmp_path))
    assert plans.chosen(report, "inf2.8xlarge") == (2, 1, 4, 4096)
    assert plans.chosen(report, "inf2.48xlarge") == (2, 12, 4, 4096)
    assert [len(plan.candidates) for plan in report.plans] == [1, 1, 1, 1]
    choice = plans.plan_for(report, "inf2.8xlarge").choice
    assert choice is not None
    assert report.recipe(choice).export is None


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (Settings(max_batch_size=8), "batch_size"),
        (Settings(max_total_tokens=2048), "max_total_tokens"),
        (Settings(num_shard=8), "num_shard"),
        (Settings(max_input_tokens=4096), "max_input_tokens"),
        (Settings(dtype="float16"), "argument"),
    ],
)
def test_a_compiled_model_takes_no_other(settings, rule, tmp_path):
    with pytest.raises(ConfigError, match="was compiled for") as caught:
        plans.make_report(settings, compiled(tmp_path))
    assert caught.value.rule == rule


def test_a_compiled_model_may_be_told_what_it_is(tmp_path):
    settings = Settings(max_batch_size=4, max_total_tokens=4096, num_shard=2, max_input_tokens=4095)
    assert plans.make_report(settings, compiled(tmp_path)).rule is None


def test_a_model_compiled_for_too_many_cores_fits_no_small_instance(tmp_path):
    report = plans.make_report(Settings(), compiled(tmp_path, tp_degree=24))
    assert [plan.fits for plan in report.plans] == [False, False, False, True]


def test_a_degree_that_inferentia2_does_not_connect_fits_nowhere(tmp_path):
    report = plans.make_report(Settings(), compiled(tmp_path, tp_degree=16))
    assert report.rule == "memory"
    assert "connects 1, 2, 4, 8, 24" in plans.plan_for(report, "inf2.48xlarge").refused[0].why


def test_a_model_for_trn2_is_not_for_these_instances(tmp_path):
    with pytest.raises(ModelError) as caught:
        plans.make_report(Settings(), compiled(tmp_path, target="trn2"))
    assert caught.value.rule == "neuron_target"


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"prefill_chunk_size": 1024}, "prefill_chunk_size 1024"), ({"speculation_length": 4}, "speculation")],
)
def test_a_compiled_model_that_no_backend_runs_is_not_planned_for(changes, why, tmp_path):
    with pytest.raises(ModelError, match=why) as caught:
        plans.make_report(Settings(), compiled(tmp_path, **changes))
    assert caught.value.rule == "unsupported_model"


def test_models_of_the_first_releases_are_not_planned_for(tmp_path):
    neuron = {"batch_size": 16, "num_cores": 2, "auto_cast_type": "f32", "compiler_version": "2.9.0.40",
              "neuron_kwargs": {"n_positions": 1024}}  # fmt: skip
    with pytest.raises(ModelError, match=r"0\.0\.11") as caught:
        plans.report(tmp_path, plans.GPT2, neuron=neuron)
    assert caught.value.rule == "unsupported_model"


def test_a_legacy_compiled_model_needs_the_legacy_image(tmp_path):
    neuron = {"batch_size": 4, "num_cores": 2, "sequence_length": 2048, "auto_cast_type": "fp16",
              "compiler_type": "neuronx-cc", "compiler_version": "2.15.143.0"}  # fmt: skip
    report = plans.report(tmp_path, plans.LLAMA_8B, neuron=neuron)
    assert (report.question.support.generation, report.dtype) == ("legacy", "float16")
    assert plans.chosen(report, "inf2.8xlarge") == (2, 1, 4, 2048)


def test_the_notes_on_a_compiled_model_are_its_own_not_those_of_an_export(tmp_path):
    path = compiled(tmp_path, on_device_sampling=False)
    report = plans.make_report(Settings(), path)
    assert report.question.support.notes == ()
    assert "sampling on the host" in text_report(report)
    assert (
        plans.plan_for(report, "inf2.8xlarge").chosen_because == "the only configuration that was asked for"
    )
