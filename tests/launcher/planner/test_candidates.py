from __future__ import annotations

import json

import pytest
from planner import plans

from launcher.planner.candidates import Verdict
from launcher.planner.prediction import NotPredicted, Prediction
from launcher.planner.question import Settings

GRANITE_2B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 40, "vocab_size": 49155}


def candidate(report, instance, tensor_parallel, slots):
    [found] = [
        c
        for c in plans.plan_for(report, instance).candidates
        if (c.tensor_parallel, c.shape.batch_size) == (tensor_parallel, slots)
    ]
    return found


def test_replicas_fill_the_cores_of_the_instance(tmp_path):
    plan = plans.plan_for(plans.report(tmp_path, plans.LLAMA_8B), "inf2.48xlarge")
    assert {(c.tensor_parallel, c.replicas) for c in plan.candidates} == {
        (1, 24), (2, 12), (4, 6), (8, 3), (24, 1)
    }  # fmt: skip


def test_more_slots_than_memory_is_no_and_nearly_full_is_tight(tmp_path):
    settings = Settings(instances=("inf2.8xlarge",), num_shard=2, max_batch_size=21)
    report = plans.report(tmp_path, plans.LLAMA_8B, settings)
    tight = candidate(report, "inf2.8xlarge", 2, 21)
    assert tight.verdict is Verdict.TIGHT
    assert "the working memory is assumed, so it may not load" in tight.why
    report = plans.report(tmp_path, plans.LLAMA_8B)
    assert candidate(report, "inf2.8xlarge", 2, 32).verdict is Verdict.NO
    assert candidate(report, "inf2.8xlarge", 2, 16).verdict is Verdict.FITS


def test_tight_is_recommended_only_where_nothing_fits(tmp_path):
    settings = Settings(instances=("inf2.8xlarge",), num_shard=2, max_batch_size=21)
    report = plans.report(tmp_path, plans.LLAMA_8B, settings)
    assert plans.chosen(report, "inf2.8xlarge") == (2, 1, 21, 4096)
    assert report.rule is None


def test_host_memory_of_a_small_instance_is_tight_before_it_is_too_small(tmp_path):
    report = plans.report(tmp_path, plans.LLAMA_8B, **GRANITE_2B)
    assert candidate(report, "inf2.xlarge", 2, 8).verdict is Verdict.FITS
    two = candidate(plans.report(tmp_path, plans.LLAMA_8B), "inf2.xlarge", 2, 8)
    assert two.verdict is Verdict.TIGHT
    assert "loading takes 2 GiB to 17.0 GiB of the 16 GiB of host memory of inf2.xlarge" in two.why
    path = compiled(tmp_path)
    [cut] = plans.plan_for(plans.make_report(Settings(), str(path)), "inf2.xlarge").candidates
    assert cut.verdict is Verdict.NO
    assert cut.why.startswith("loading needs at least 17.0 GiB of the 16 GiB of host memory of inf2.xlarge")
    shard = path / "checkpoint" / "weights" / "tp0_sharded_checkpoint.safetensors"
    shard.parent.mkdir(parents=True)
    shard.touch()
    [stored] = plans.plan_for(plans.make_report(Settings(), str(path)), "inf2.xlarge").candidates
    assert stored.verdict is Verdict.TIGHT


def compiled(tmp_path, **changes):
    path = plans.directory(tmp_path, plans.LLAMA_8B)
    neuron = {"batch_size": 4, "sequence_length": 4096, "tp_degree": 2, "torch_dtype": "bfloat16", **changes}
    (path / "neuron_config.json").write_text(json.dumps(neuron))
    return path


def test_what_is_tight_by_host_memory_and_device_says_both_and_is_not_chosen_over_one(tmp_path):
    wide = {"intermediate_size": 14400, "num_hidden_layers": 32}
    report = plans.report(tmp_path, plans.LLAMA_8B, Settings(("inf2.xlarge",), max_batch_size=21), **wide)
    [both] = [c for c in report.plans[0].candidates if c.verdict is Verdict.TIGHT]
    assert "of each core's 16.0 GB" in both.why
    assert "; and loading takes" in both.why
    report = plans.report(tmp_path, plans.LLAMA_8B, Settings(("inf2.xlarge",)), num_key_value_heads=32)
    [plan] = report.plans
    full = [c for c in plan.candidates if c.verdict is Verdict.TIGHT and not c.memory.comfortable]
    assert full
    assert plan.choice is not None
    assert plan.choice.memory.comfortable


def test_of_what_is_nearly_full_the_least_full_is_recommended(tmp_path):
    settings = Settings(("inf2.8xlarge",), num_shard=2)
    report = plans.report(tmp_path, plans.LLAMA_8B, settings, num_hidden_layers=57)
    [plan] = report.plans
    tight = [c for c in plan.candidates if c.verdict is Verdict.TIGHT]
    assert len(tight) > 1
    assert plan.choice is min(tight, key=lambda c: c.memory.share)
    assert plan.chosen_because == "everything is tight; this is the least full"


def test_what_the_user_set_is_all_that_is_tried(tmp_path):
    settings = Settings(
        ("inf2.48xlarge",), max_total_tokens=2048, max_batch_size=3, num_shard=4, data_parallel_size=2
    )
    [plan] = plans.report(tmp_path, plans.LLAMA_8B, settings).plans
    [only] = plan.candidates
    assert (only.tensor_parallel, only.replicas) == (4, 2)
    assert (only.shape.batch_size, only.shape.max_length) == (3, 2048)


def test_replicas_that_do_not_fit_the_cores_are_refused(tmp_path):
    settings = Settings(("inf2.24xlarge",), num_shard=8, data_parallel_size=2)
    [plan] = plans.report(tmp_path, plans.LLAMA_8B, settings).plans
    assert plan.choice is None
    assert plan.refused[0].why == "2 replicas of 8 cores take 16, and inf2.24xlarge has 12"


def test_a_narrower_prefill_is_faster_and_no_longer_as_measured(tmp_path):
    whole, half = (
        candidate(
            plans.report(tmp_path, plans.LLAMA_8B, Settings(max_input_tokens=width)), "inf2.48xlarge", 8, 32
        ).prediction
        for width in (None, 2048)
    )
    assert isinstance(whole, Prediction)
    assert isinstance(half, Prediction)
    assert half.ttft_s == pytest.approx(whole.ttft_s / 2)
    assert half.tokens_per_s > whole.tokens_per_s
    assert (whole.label, half.label) == ("predicted", "extrapolated")


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        pytest.param(plans.GPT2, {}, "the legacy one has other graphs", id="legacy"),
        pytest.param(
            plans.LLAMA_8B,
            {"model_type": "mixtral", "num_local_experts": 8},
            "mixture of experts",
            id="experts",
        ),
        pytest.param(
            plans.LLAMA_8B,
            {**GRANITE_2B, "num_hidden_layers": 16},
            "no published figure near this: 1.17 B parameters on 4 core(s)",
            id="too small",
        ),
    ],
)
def test_what_is_not_predicted_says_why(name, changes, reason, tmp_path):
    report = plans.report(tmp_path, name, **changes)
    found = [c.prediction for plan in report.plans for c in plan.candidates if c.tensor_parallel == 4]
    assert all(isinstance(p, NotPredicted) and reason in p.reason for p in found)


def test_more_slots_than_were_measured_are_not_predicted(tmp_path):
    report = plans.report(tmp_path, plans.LLAMA_70B)
    found = candidate(report, "inf2.48xlarge", 24, 16).prediction
    assert isinstance(found, NotPredicted)
    assert found.reason.endswith("was measured with up to 8 slots")


def test_float32_is_not_predicted(tmp_path):
    report = plans.report(tmp_path, plans.LLAMA_8B, Settings(dtype="float32"))
    assert all(c.tokens_per_s is None for plan in report.plans for c in plan.candidates)


def test_an_unpredicted_model_of_a_published_size_is_placed_as_the_published_one(tmp_path):
    report = plans.report(tmp_path, plans.LLAMA_8B, model_type="mistral")
    assert plans.chosen(report, "inf2.48xlarge") == (8, 3, 32, 4096)
    assert (
        "the configuration published for Llama-3.1-8B"
        in plans.plan_for(report, "inf2.48xlarge").chosen_because
    )


def test_mixtral_is_exported_without_continuous_batching(tmp_path):
    report = plans.report(tmp_path, plans.LLAMA_8B, model_type="mixtral", num_local_experts=2)
    assert not any(
        c.mode.inserts or c.mode.on_device_sampling for plan in report.plans for c in plan.candidates
    )
