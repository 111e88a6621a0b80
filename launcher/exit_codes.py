"""What the launcher's exit status means: one table from the rule that was broken to a number.

Status 0, 1 and 2 keep the meaning they have for TGI's launcher. Everything else has a number of its own, so
that a unit file or a deployment script can tell "ask for another batch size" from "the port is taken".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from neuron_server.errors import NeuronTgiError


@dataclass(frozen=True, slots=True)
class ExitCode:
    """One exit status and the sentence the help and the docs explain it with."""

    code: int
    meaning: str


#: rule -> exit status; ``ConfigError.rule``, ``ModelError.rule`` and ``LaunchError.rule`` are its keys.
EXIT_CODES: Mapping[str, ExitCode] = MappingProxyType(
    {
        "argument": ExitCode(1, "an argument or a pair of arguments is wrong (TGI's ArgumentValidation)"),
        "usage": ExitCode(2, "unknown flag, or a value of the wrong type"),
        "refused_flag": ExitCode(3, "a flag of TGI that this server refuses"),
        "backend_unavailable": ExitCode(4, "--backend names one that cannot run here"),
        "emulation": ExitCode(5, "a CPU emulation flag that does not fit the others"),
        "batch_size": ExitCode(10, "--max-batch-size is not the batch size of the model"),
        "max_input_tokens": ExitCode(11, "--max-input-tokens is outside 1 .. min(C, T - 1)"),
        "max_total_tokens": ExitCode(12, "--max-total-tokens is not a length the model was compiled for"),
        "max_batch_prefill_tokens": ExitCode(
            13, "--max-batch-prefill-tokens is outside max input .. B x max input"
        ),
        "max_batch_total_tokens": ExitCode(14, "--max-batch-total-tokens is not B x T"),
        "max_positions": ExitCode(15, "--max-total-tokens exceeds the positions of the model"),
        "max_concurrent_requests": ExitCode(16, "--max-concurrent-requests is below 1"),
        "tokenizer_config": ExitCode(17, "--tokenizer-config-path names no readable JSON object"),
        "neuron_environment": ExitCode(18, "HF_NUM_CORES or HF_AUTO_CAST_TYPE do not fit the compiled model"),
        "num_shard": ExitCode(
            19, "--num-shard is not the tensor-parallel degree of the model, or not 1 on CPU"
        ),
        "model_missing": ExitCode(20, "no such model directory, or no config.json in it"),
        "config_corrupt": ExitCode(21, "a configuration file of the model cannot be read"),
        "unsupported_model": ExitCode(22, "a model family that cannot be served"),
        "weights_missing": ExitCode(23, "no safetensors, or one of them is absent"),
        "weights_corrupt": ExitCode(24, "a safetensors file is damaged or cut short"),
        "download_failed": ExitCode(25, "the model could not be downloaded"),
        "model": ExitCode(26, "the model could not be loaded"),
        "not_a_neuron_model": ExitCode(27, "the model was not compiled for Neuron, and cannot be here"),
        "no_cached_config": ExitCode(28, "no compiled configuration in the cache is what the flags ask for"),
        "neuron_version": ExitCode(29, "the model was compiled by other versions than are installed"),
        "port_in_use": ExitCode(30, "another process listens on --port"),
        "address": ExitCode(31, "--hostname and --port cannot be listened on"),
        "socket": ExitCode(32, "a shard socket path cannot be used"),
        "memory": ExitCode(33, "weights and KV cache do not fit the memory of the host or of the cores"),
        "no_neuron_device": ExitCode(34, "no Neuron device can be seen from here"),
        "neuron_driver": ExitCode(35, "driver of the host and runtime of the container do not go together"),
        "neuron_target": ExitCode(36, "the model was compiled for another kind of device"),
        "neuron_cores": ExitCode(
            37, "the replicas need more NeuronCores than are visible, or others than these"
        ),
        "export_failed": ExitCode(38, "the model could not be compiled"),
        "generator_start": ExitCode(40, "a generator ended before it was ready"),
        "generator_lost": ExitCode(
            41, "generators ended more often than --max-restarts allows, and none is left"
        ),
        "device_failed": ExitCode(42, "the device failed before the generator was ready"),
        "router_failed": ExitCode(43, "the router ended"),
    }
)


class LaunchError(NeuronTgiError):
    """Starting or watching the programs failed.

    ``kind`` is TGI's word for it, the last line on stderr (``Error: ShardCannotStart``); the message, which
    goes to the log before, tells the story.
    """

    def __init__(self, message: str, *, rule: str, kind: str) -> None:
        super().__init__(message)
        self.rule = rule
        self.kind = kind


def exit_code(rule: str) -> int:
    """The status for ``rule``; 1, TGI's status of any failure, for a rule that has none of its own."""
    known = EXIT_CODES.get(rule)
    return known.code if known else 1


def last_line(rule: str, message: str) -> str:
    """What stderr ends with: for TGI's rules its ``Error: ArgumentValidation("...")``, else our own text."""
    if rule == "argument":
        escaped = message.replace("\\", "\\\\").replace('"', '\\"')
        return f'Error: ArgumentValidation("{escaped}")'
    return f"Error: {message}"
