"""Drift: everything of optimum-neuron that compiling and the cache lookup call, by name and keyword."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest
from hosts.export.release import INSTALLED, prepare

_CACHE = ("model_id", "task")
#: Release -> (module, attribute, keywords that are passed, keywords that must not be needed).
CALLED = {
    "0.4.5": [
        ("optimum.neuron.cache.hub_cache", "get_hub_cached_entries", _CACHE),
        ("optimum.neuron.cache.entries.single_model", "SingleModelCacheEntry.from_local_path", _CACHE),
        ("optimum.neuron.utils.cache_utils", "get_hf_hub_cache_repo", ()),
        ("optimum.neuron.models.auto_model", "get_neuron_model_class", ("model_type", "task", "mode")),
        (
            "optimum.neuron.models.inference.modeling_utils",
            "NeuronModelForCausalLM.get_neuron_config",
            ("model_name_or_path", "config", "batch_size", "sequence_length", "tensor_parallel_size",
             "instance_type"),
        ),
        (
            "optimum.neuron.models.inference.modeling_utils",
            "NeuronModelForCausalLM.export",
            ("model_id", "config", "neuron_config", "revision", "load_weights"),
        ),
        (
            "optimum.neuron.models.inference.modeling_utils",
            "NeuronModelForCausalLM.save_pretrained",
            ("save_directory",),
        ),
    ],
    "0.3.0": [
        ("optimum.neuron.cache.hub_cache", "get_hub_cached_entries", _CACHE),
        ("optimum.neuron.utils.cache_utils", "get_hf_hub_cache_repo", ()),
        ("optimum.neuron.models.auto_model", "get_neuron_model_class", ("model_type", "task", "mode")),
        (
            "optimum.neuron.modeling_decoder",
            "NeuronModelForCausalLM.get_neuron_config",
            ("model_name_or_path", "config", "batch_size", "sequence_length", "tensor_parallel_size",
             "auto_cast_type"),
        ),
        (
            "optimum.neuron.modeling_decoder",
            "NeuronModelForCausalLM.export",
            ("model_id", "config", "neuron_config", "revision", "load_weights"),
        ),
    ],
    "0.0.28": [
        ("optimum.neuron.utils.hub_cache_utils", "get_hub_cached_entries", ("model_id", "mode")),
        ("optimum.neuron.utils.cache_utils", "get_hf_hub_cache_repo", ()),
        (
            "optimum.neuron.modeling_decoder",
            "NeuronDecoderModel._export",
            ("model_id", "task", "batch_size", "sequence_length", "num_cores", "auto_cast_type"),
        ),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("module", "name", "keywords"), CALLED[INSTALLED])
def test_what_we_call_is_there_with_the_keywords_that_we_pass(module, name, keywords):
    prepare()
    found = import_module(module)
    for part in name.split("."):
        assert hasattr(found, part), f"optimum-neuron {INSTALLED} has no {name} in {module} any more"
        found = getattr(found, part)
    parameters = inspect.signature(found).parameters
    missing = set(keywords) - set(parameters)
    assert not missing, f"{name} of optimum-neuron {INSTALLED} does not take {sorted(missing)} any more"
    needed = {
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"
    }
    # ``config`` comes to ``_export`` from ``from_pretrained``, which reads it.
    assert needed <= {*keywords, "config"}, f"{name} of optimum-neuron {INSTALLED} needs {sorted(needed)} now"


def test_the_target_of_an_instance_is_upstreams():
    if INSTALLED != "0.4.5":
        pytest.skip("since 0.4.1")
    prepare()
    from neuron_server.compiled_model import TARGETS

    instance = import_module("optimum.neuron.utils.instance")
    assert {name: instance.normalize_instance_type(name) for name in TARGETS} == TARGETS
    assert set(TARGETS) == set(instance.SUPPORTED_INSTANCE_TYPES)


def test_the_families_that_the_launcher_knows_are_those_of_the_release():
    prepare()
    from launcher.neuron_checks import compiled_by

    ours = set(compiled_by(INSTALLED))
    if INSTALLED == "0.0.28":
        # transformers-neuronx' own families are registered only where it is installed.
        assert ours == {"gpt2", "opt", "bloom", "mistral", "llama", "mixtral", "qwen2", "granite"}
        return
    registry = import_module("optimum.neuron.models.auto_model")
    registry.has_neuron_model_class("llama", "text-generation", "inference")
    theirs = {
        family
        for family, task, mode in registry._REGISTERED_NEURON_MODELS
        if (task, mode) == ("text-generation", "inference")
    }
    assert ours == theirs
