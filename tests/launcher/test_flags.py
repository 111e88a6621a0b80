from __future__ import annotations

import pytest

from launcher.flags import BY_NAME, FLAGS, Treatment

#: name -> default (None: unset), as TGI 3 documents its launcher.
TGI = {
    "model_id": None, "revision": None, "validation_workers": 2, "sharded": None, "num_shard": None,
    "quantize": None, "speculate": None, "dtype": None, "kv_cache_dtype": None, "trust_remote_code": False,
    "max_concurrent_requests": 128, "max_best_of": 2, "max_stop_sequences": 4, "max_top_n_tokens": 5,
    "max_input_tokens": None, "max_input_length": None, "max_total_tokens": None, "waiting_served_ratio": 0.3,
    "max_batch_prefill_tokens": None, "max_batch_total_tokens": None, "max_waiting_tokens": 20,
    "max_batch_size": None, "cuda_graphs": None, "hostname": "0.0.0.0", "port": 3000, "prometheus_port": None,
    "shard_uds_path": None, "master_addr": None, "master_port": None, "huggingface_hub_cache": None,
    "weights_cache_override": None, "disable_custom_kernels": False, "cuda_memory_fraction": None,
    "rope_scaling": None, "rope_factor": None, "json_output": False, "otlp_endpoint": None,
    "otlp_service_name": "text-generation-inference.router",
    "cors_allow_origin": None, "api_key": None, "watermark_gamma": None,
    "watermark_delta": None, "ngrok": False, "ngrok_authtoken": None, "ngrok_edge": None,
    "tokenizer_config_path": None, "disable_grammar_support": False, "env": False, "max_client_batch_size": 4,
    "lora_adapters": None, "usage_stats": None, "payload_limit": 2_000_000, "enable_prefill_logprobs": False,
    "graceful_termination_timeout": 90,
}  # fmt: skip
OURS = {
    *("backend", "prefill_mode", "strict", "poison", "simulated_clock", "max_prefill_stall", "max_restarts"),
    *("master_shard_uds_path", "version", "data_parallel_size", "on_device_sampling", "approximate_top_p"),
}


def test_every_flag_of_tgi_is_in_the_table_and_nothing_unexplained():
    assert {flag.name for flag in FLAGS} == set(TGI) | OURS


@pytest.mark.parametrize("name", TGI)
def test_default_is_tgis(name):
    assert BY_NAME[name].default == TGI[name]


def test_names_are_unique():
    assert len({flag.name for flag in FLAGS}) == len(FLAGS)
    shorts = [flag.short for flag in FLAGS if flag.short]
    assert sorted(shorts) == ["-e", "-g", "-p"]


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_a_flag_says_what_it_does_or_why_it_does_not(flag):
    said = flag.help if flag.treatment is Treatment.HONOURED else flag.reason
    assert said.endswith(".")


def test_variables_are_the_upper_case_names_except_for_what_only_informs():
    assert BY_NAME["max_total_tokens"].variable == "MAX_TOTAL_TOKENS"
    assert [flag.name for flag in FLAGS if flag.variable is None] == ["env", "version"]


def test_secrets_are_marked():
    assert {flag.name for flag in FLAGS if flag.secret} == {"api_key", "ngrok_authtoken"}
