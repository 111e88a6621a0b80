"""The settings of the two programs, and their command lines.

The launcher builds these from its plan and starts the programs with ``to_argv``; the programs read them back
with ``from_argv``. One dataclass field is one ``--flag``; both programs can thus be started by hand. Fields
marked secret travel in the environment (``NEURON_TGI_<FIELD>``), because everyone can read a command line.
"""

from __future__ import annotations

import argparse
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, TypeVar

from neuron_server.backend import PrefillMode

DType = Literal["float32", "bfloat16", "float16"]
BackendName = Literal["cpu", "fake", "neuron", "neuron_legacy"]

#: TGI's default, which its launcher gives to router and shards alike.
OTLP_SERVICE_NAME = "text-generation-inference.router"


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """Everything ``neuron_server.serve_generator`` needs; validated by the launcher's plan."""

    model_path: str = field(metadata={"help": "local directory with config.json and safetensors"})
    uds_path: str = field(metadata={"help": "unix socket to serve on"})
    batch_size: int = field(metadata={"help": "B, the slots of the static batch"})
    max_length: int = field(metadata={"help": "T, tokens per slot, prompt plus new"})
    max_prompt_tokens: int = field(metadata={"help": "C, the longest prompt"})
    backend: BackendName = field(default="cpu", metadata={"help": "which backend runs the model"})
    dtype: DType = field(default="float32", metadata={"help": "type of weights and KV cache"})
    prefill_mode: PrefillMode = field(default="insert", metadata={"help": "insert, or rebuild the KV cache"})
    strict: bool = field(default=False, metadata={"help": "pay the real static cost on CPU"})
    poison: bool = field(default=False, metadata={"help": "write garbage where a device would"})
    on_device_sampling: bool = field(
        default=False, metadata={"help": "hand over tokens instead of logits, as a device that samples does"}
    )
    simulated_clock: str | None = field(default=None, metadata={"help": "PREFILL_S:B=STEP_S,B=STEP_S..."})
    threads: int | None = field(
        default=None, metadata={"help": "most threads of the CPU backend; OMP_NUM_THREADS overrules it"}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "run code found in the model directory"})
    max_batch_prefill_tokens: int = field(default=4096, metadata={"help": "prompt tokens between two steps"})
    waiting_served_ratio: float = field(
        default=0.3, metadata={"help": "as TGI: queue length that joins early"}
    )
    max_waiting_tokens: int = field(default=20, metadata={"help": "as TGI: steps before the queue must join"})
    max_prefill_stall: float = field(default=1.0, metadata={"help": "seconds of prefills between two steps"})
    approximate_top_p: bool = field(
        default=False, metadata={"help": "let the device's narrower top_p stand for the exact one"}
    )
    disable_grammar_support: bool = field(default=False, metadata={"help": "refuse grammars"})
    otlp_endpoint: str | None = field(default=None, metadata={"help": "export traces to this gRPC collector"})
    otlp_service_name: str = field(default=OTLP_SERVICE_NAME, metadata={"help": "service.name of the traces"})
    json_output: bool = field(default=False, metadata={"help": "log as JSON lines"})


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Everything ``neuron_server.serve_router`` needs; validated by the launcher's plan."""

    model_id: str = field(metadata={"help": "the name shown to clients"})
    tokenizer_path: str = field(metadata={"help": "local directory of the tokenizer and generation config"})
    shard_uds_paths: tuple[str, ...] = field(metadata={"help": "sockets of the generators, one per replica"})
    batch_size: int = field(metadata={"help": "B of each replica"})
    max_input_tokens: int = field(metadata={"help": "longest prompt"})
    max_total_tokens: int = field(metadata={"help": "T, prompt plus new tokens"})
    hostname: str = field(default="0.0.0.0", metadata={"help": "address to listen on"})  # noqa: S104 as TGI
    port: int = field(default=3000, metadata={"help": "port to listen on"})
    max_concurrent_requests: int = field(default=128, metadata={"help": "permits; beyond them 429"})
    max_best_of: int = field(default=2, metadata={"help": "largest best_of"})
    max_stop_sequences: int = field(default=4, metadata={"help": "largest number of stop strings"})
    max_top_n_tokens: int = field(default=5, metadata={"help": "largest top_n_tokens"})
    max_client_batch_size: int = field(default=4, metadata={"help": "prompts per completions request"})
    validation_workers: int = field(default=2, metadata={"help": "threads that tokenize long prompts"})
    payload_limit: int = field(default=2_000_000, metadata={"help": "largest request body, bytes"})
    cors_allow_origin: tuple[str, ...] = field(default=(), metadata={"help": "allowed browser origins"})
    api_key: str | None = field(default=None, metadata={"help": "bearer token", "secret": True})
    trust_remote_code: bool = field(default=False, metadata={"help": "run tokenizer code of the model"})
    revision: str | None = field(default=None, metadata={"help": "resolved model revision, shown by /info"})
    pipeline_tag: str | None = field(default=None, metadata={"help": "what the hub says the model is for"})
    tokenizer_config_path: str | None = field(
        default=None, metadata={"help": "tokenizer_config.json to take the chat template from"}
    )
    approximate_top_p: bool = field(
        default=False, metadata={"help": "let the device's narrower top_p stand for the exact one"}
    )
    disable_grammar_support: bool = field(default=False, metadata={"help": "refuse grammars and tools"})
    otlp_endpoint: str | None = field(default=None, metadata={"help": "export traces to this gRPC collector"})
    otlp_service_name: str = field(default=OTLP_SERVICE_NAME, metadata={"help": "service.name of the traces"})
    graceful_termination_timeout: float = field(default=90.0, metadata={"help": "seconds to drain"})
    json_output: bool = field(default=False, metadata={"help": "log as JSON lines"})


C = TypeVar("C", GeneratorConfig, RouterConfig)


def _env_name(name: str) -> str:
    return f"NEURON_TGI_{name.upper()}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def to_argv(config: GeneratorConfig | RouterConfig) -> list[str]:
    """The command line that ``from_argv`` reads back to an equal config, its secrets excepted."""
    argv: list[str] = []
    for f in fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("secret") or value is None or value is False:
            continue
        if value is True:
            argv.append(_flag(f.name))
        elif isinstance(value, tuple):
            argv += [f"{_flag(f.name)}={item}" for item in value]
        else:
            argv.append(f"{_flag(f.name)}={value}")  # one word, so that a value may begin with a dash
    return argv


def secret_env(config: GeneratorConfig | RouterConfig) -> dict[str, str]:
    """The environment variables that carry the config's secrets."""
    secrets = (f.name for f in fields(config) if f.metadata.get("secret"))
    return {_env_name(name): value for name in secrets if (value := getattr(config, name)) is not None}


def from_argv(cls: type[C], argv: Sequence[str], *, prog: str, description: str | None = None) -> C:
    """Parse a program's command line; exits with status 2 and a usage text when it does not fit."""
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    hints = typing.get_type_hints(cls)
    for f in fields(cls):
        if not f.metadata.get("secret"):
            parser.add_argument(_flag(f.name), **_argument(f, hints[f.name]))
    values = vars(parser.parse_args(list(argv)))
    for f in fields(cls):
        if f.metadata.get("secret"):
            values[f.name] = os.environ.get(_env_name(f.name))
        elif isinstance(values[f.name], list):
            values[f.name] = tuple(values[f.name])
    return cls(**values)


def _argument(f: Field[Any], hint: Any) -> dict[str, Any]:
    required = f.default is MISSING
    options: dict[str, Any] = {"dest": f.name, "required": required, "help": f.metadata.get("help")}
    if not required:
        options["default"] = f.default
    origin = typing.get_origin(hint)
    if hint is bool:
        options["action"] = "store_true"
    elif origin is tuple:
        options.update(type=typing.get_args(hint)[0], action="append")
        options["default"] = None if required else list(typing.cast("tuple[str, ...]", f.default))
    elif origin is Literal:
        options["choices"] = typing.get_args(hint)
    elif origin in (types.UnionType, typing.Union):
        options["type"] = next(a for a in typing.get_args(hint) if a is not type(None))
    else:
        options["type"] = hint
    return options
