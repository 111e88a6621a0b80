"""Choices and predictions beside what was published; ``docs/planner.md`` shows the same tables."""

from __future__ import annotations

import pytest
from planner import plans
from planner.plans import GPT2, LLAMA_8B, LLAMA_70B, QWEN_7B

from launcher.planner.anchors import RAW, SERVING, ServingFigure
from launcher.planner.prediction import ACCURACY, Case, Prediction, Workload, predict


def predicted(figure: ServingFigure) -> float:
    """What the two-number model says for the configuration of ``figure``, sampling on the device."""
    case = Case(
        parameters=figure.parameters,
        tensor_parallel=figure.tensor_parallel,
        replicas=figure.replicas,
        slots=figure.slots,
        prefill_width=4096,
        inserts=True,
        on_device_sampling=True,
        dense=True,
        legacy=False,
    )
    found = predict(case, Workload())
    assert isinstance(found, Prediction)
    return found.tokens_per_s


def figure(model: str, server: str, replicas: int) -> ServingFigure:
    [found] = [f for f in SERVING if f.model == model and f.server == server and f.replicas == replicas]
    return found


@pytest.mark.parametrize(
    ("model", "server", "replicas", "share"),
    [
        ("Llama-3.1-8B", "vLLM plugin of optimum-neuron", 3, 0.90),
        ("Llama-3.1-8B", "vLLM plugin of optimum-neuron", 1, 0.93),
        ("Llama-3.1-8B", "vLLM plugin of optimum-neuron, chunked prefill", 1, 0.97),
        ("DeepSeek-R1-Distill-Llama-70B", "TGI, optimum-neuron 0.2", 1, 0.93),
        ("Llama-3-70B", "TGI, optimum-neuron 0.0.28", 1, 0.90),
    ],
)
def test_servers_that_keep_the_slots_full_are_within_the_accuracy_of_the_model(
    model, server, replicas, share
):
    found = figure(model, server, replicas)
    assert found.tokens_per_s / predicted(found) == pytest.approx(share, abs=0.006)
    assert share >= 1 - ACCURACY


@pytest.mark.parametrize(
    ("model", "server", "share"),
    [
        ("Llama-3.1-8B", "TGI, optimum-neuron 0.2", 0.67),
        ("Llama-3.1-8B", "TGI, optimum-neuron 0.0.2x", 0.54),
        ("Qwen2.5-7B", "TGI, optimum-neuron 0.0.28", 0.58),
    ],
)
def test_tgi_reached_less_on_three_replicas_which_the_report_says(model, server, share):
    found = figure(model, server, 3)
    assert found.tokens_per_s / predicted(found) == pytest.approx(share, abs=0.006)


def test_the_range_of_the_footnote_is_that_of_the_figures():
    shares = [f.tokens_per_s / predicted(f) for f in SERVING if "on the host" not in f.server]
    assert f"{min(shares):.0%} {max(shares):.0%}" == "54% 97%"


@pytest.mark.parametrize("anchor", RAW, ids=lambda a: a.model)
def test_the_two_numbers_give_back_the_charts_they_come_from(anchor):
    """The charts do not say how many tokens they generated; 256 explains every one of their rates."""
    new = 256
    for slots, (low, high) in anchor.end_to_end.items():
        seconds = slots * anchor.prefill_s + new * anchor.steps[slots]
        rate = slots * new / seconds
        assert low * 0.95 <= rate <= high * 1.05, slots


def test_the_two_anchors_agree_on_what_a_core_does():
    """The figures that the extrapolation rests on, as the module's docstring says them."""
    teraflops, gigabytes = [], []
    for anchor in RAW:
        per_core = anchor.parameters / anchor.tensor_parallel
        teraflops.append(2 * per_core * 4096 / anchor.prefill_s / 1e12)
        gigabytes.append(2 * per_core / anchor.steps[1] / 1e9)
    assert [round(t) for t in sorted(teraflops)] == [23, 28]
    assert [round(g) for g in sorted(gigabytes)] == [183, 196]


def test_the_anchors_are_the_models_they_name(tmp_path):
    for name, anchor in ((LLAMA_8B, RAW[0]), (LLAMA_70B, RAW[1])):
        assert plans.report(tmp_path, name).question.model.parameters == anchor.parameters
    qwen = plans.report(tmp_path, QWEN_7B).question.model.parameters
    assert qwen == next(f.parameters for f in SERVING if f.model == "Qwen2.5-7B")


# -- choices -------------------------------------------------------------------------------------------------


def test_llama_8b_is_served_as_it_was_published(tmp_path):
    report = plans.report(tmp_path, LLAMA_8B)
    assert plans.chosen(report, "inf2.48xlarge") == (8, 3, 32, 4096)
    assert plans.chosen(report, "inf2.24xlarge") == (4, 3, 32, 4096)
    assert plans.chosen(report, "inf2.8xlarge") == (2, 1, 16, 4096)
    assert plans.chosen(report, "inf2.xlarge") == (2, 1, 16, 4096)
    assert report.smallest is not None
    assert report.smallest.instance.name == "inf2.8xlarge"
    assert report.smallest_tight is not None
    assert report.smallest_tight.instance.name == "inf2.xlarge"


def test_the_cached_configurations_of_llama_3_8b_on_two_cores_fit(tmp_path):
    """HuggingFace's public list has 1, 4 and 8 slots of 4096 on 2 cores: a memory account that refused them
    would be wrong."""
    plan = plans.plan_for(plans.report(tmp_path, LLAMA_8B), "inf2.8xlarge")
    fitting = {c.shape.batch_size for c in plan.candidates if c.tensor_parallel == 2 and c.verdict == "fits"}
    assert {1, 4, 8} <= fitting


def test_llama_70b_needs_all_cores_of_the_largest_as_published(tmp_path):
    report = plans.report(tmp_path, LLAMA_70B)
    assert plans.chosen(report, "inf2.48xlarge") == (24, 1, 8, 4096)
    assert [plan.fits for plan in report.plans] == [False, False, False, True]


def test_qwen_7b_is_served_as_it_was_published_although_its_heads_must_be_padded(tmp_path):
    report = plans.report(tmp_path, QWEN_7B)
    assert plans.chosen(report, "inf2.48xlarge") == (8, 3, 32, 4096)
    choice = plans.plan_for(report, "inf2.48xlarge").choice
    assert choice is not None
    assert (choice.split.heads, choice.split.kv_heads) == (32, 8)


def test_qwen_7b_on_two_cores_samples_on_the_host_and_says_what_that_costs(tmp_path):
    choice = plans.plan_for(plans.report(tmp_path, QWEN_7B), "inf2.8xlarge").choice
    assert choice is not None
    assert not choice.mode.on_device_sampling
    assert isinstance(choice.prediction, Prediction)
    assert choice.prediction.label == "extrapolated"
    assert "/ 2.4 for sampling on the host" in choice.prediction.basis


def test_a_server_that_inserts_requests_is_no_example_for_a_model_that_rebuilds(tmp_path):
    """bloom-7b1 has nearly the size of Qwen2.5-7B, whose published servers have 32 slots."""
    bloom = {"model_type": "bloom", "hidden_size": 4096, "num_hidden_layers": 30, "num_attention_heads": 32,
             "num_key_value_heads": 32, "vocab_size": 250880, "tie_word_embeddings": True}  # fmt: skip
    report = plans.report(tmp_path, LLAMA_8B, **bloom)
    assert report.question.model.parameters == 7_069_016_064
    assert plans.chosen(report, "inf2.48xlarge") == (2, 12, 4, 2048)


def test_gpt2_is_for_the_legacy_image_and_nothing_is_predicted(tmp_path):
    report = plans.report(tmp_path, GPT2)
    assert report.question.support.generation == "legacy"
    assert "no graph for prefill" in report.question.support.notes[-1]
    assert plans.chosen(report, "inf2.xlarge") == (1, 2, 16, 1024)
    candidates = [c for plan in report.plans for c in plan.candidates]
    assert all(c.tokens_per_s is None for c in candidates)
    assert not any(c.mode.inserts for c in candidates)
    twelve_heads = plans.plan_for(report, "inf2.48xlarge")
    assert [r.tensor_parallel for r in twelve_heads.refused] == [8, 24]
    assert all("not verified" in r.why for r in twelve_heads.refused)
