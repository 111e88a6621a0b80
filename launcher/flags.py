"""Every flag of the launcher, in one table: TGI's and ours.

The command (``launcher/command.py``), its ``--help``, the reference page (``docs/flags.md``) and the checks
all read this table. Each flag has one treatment: it is honoured, it is accepted without effect (logged once,
with the reason), or it is refused (with the reason), because ignoring it would change answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from neuron_server.config import OTLP_SERVICE_NAME

Default = int | float | str | bool | None
Kind = type[int] | type[float] | type[str] | type[bool]


class Treatment(str, Enum):
    """What the launcher does with a flag that is given."""

    HONOURED = "honoured"
    IGNORED = "accepted without effect"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Flag:
    """One ``--flag``. ``name`` has underscores; ``help`` is a sentence.

    ``reason`` says why it is not honoured. ``default`` ``None`` means unset; what is derived then stands in
    the help. ``least`` and ``most`` bound a number. ``many``: may be repeated. ``env``: whether the variable
    ``NAME`` is read.
    """

    name: str
    kind: Kind
    help: str
    panel: str
    default: Default = None
    treatment: Treatment = Treatment.HONOURED
    reason: str = ""
    short: str | None = None
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    many: bool = False
    env: bool = True
    secret: bool = False

    @property
    def option(self) -> str:
        """``--max-total-tokens``"""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str | None:
        """``MAX_TOTAL_TOKENS``, or ``None`` for the few flags that have no environment variable."""
        return self.name.upper() if self.env else None

    @property
    def group(self) -> str:
        """The panel of ``--help`` that shows it."""
        return self.panel if self.treatment is Treatment.HONOURED else _OTHER_PANELS[self.treatment]

    @property
    def text(self) -> str:
        """The help text, the reason included."""
        return f"{self.help} {self.reason}".strip()


_OTHER_PANELS = {
    Treatment.IGNORED: "TGI's flags that are accepted without effect",
    Treatment.REFUSED: "TGI's flags that are refused",
}
MODEL, SHAPE, LIMITS = "Model", "Static shape", "Limits of a request"
SCHEDULING, HTTP, PROCESSES, LOGGING = "Scheduling", "HTTP", "Processes", "Logging and information"
EMULATION = "CPU emulation of a static device"


def _uint(name: str, help: str, panel: str, default: int | None = None, *, most: int | None = None,  # noqa: A002
          short: str | None = None) -> Flag:  # fmt: skip
    return Flag(name, int, help, panel, default, least=0, most=most, short=short)


def _text(name: str, help: str, panel: str, default: str | None = None, *,  # noqa: A002
          choices: tuple[str, ...] = (), many: bool = False, secret: bool = False) -> Flag:  # fmt: skip
    return Flag(name, str, help, panel, default, choices=choices, many=many, secret=secret)


def _switch(name: str, help: str, panel: str, *, short: str | None = None, env: bool = True) -> Flag:  # noqa: A002
    return Flag(name, bool, help, panel, default=False, short=short, env=env)


def _ignored(
    name: str, kind: Kind, reason: str, *, choices: tuple[str, ...] = (), secret: bool = False
) -> Flag:
    default = False if kind is bool else None
    return Flag(name, kind, "", "", default, Treatment.IGNORED, reason, choices=choices, secret=secret)


def _refused(name: str, kind: Kind, reason: str) -> Flag:
    return Flag(name, kind, "", "", None, Treatment.REFUSED, reason)


_HONOURED = (
    _text("model_id", "Local directory or hub id of a causal language model in safetensors. "
          "Unset: the small demo model that ships with this package.", MODEL),
    _text("revision", "Branch, tag or commit of a hub model.", MODEL),
    _text("dtype", "Type of weights and KV cache. Unset: float32 on CPU, where results are exact; otherwise "
          "the type the model was compiled for.", MODEL, choices=("float32", "bfloat16", "float16")),
    _text("backend", "What runs the model; auto means neuron where a Neuron device is present, else cpu. "
          "neuron: models of optimum-neuron 0.2 and later; neuron_legacy: of before.",
          MODEL, "auto", choices=("auto", "cpu", "neuron", "neuron_legacy", "fake")),
    _switch("trust_remote_code", "Run Python code found in the model directory; off unless asked.", MODEL),
    _text("huggingface_hub_cache", "Directory for downloaded models.", MODEL),
    _text("tokenizer_config_path", "A tokenizer_config.json whose chat template takes the place of the "
          "model's own.", MODEL),
    _uint("max_batch_size", "B, the slots of the static batch. A compiled model fixes it. Unset: "
          "max-batch-total-tokens / max-total-tokens where that is given, else 4.", SHAPE),
    _uint("max_total_tokens", "T, tokens of a slot, prompt plus new. A compiled model fixes it. Unset: 2048, "
          "or what the positions of the model allow.", SHAPE),
    _uint("max_input_tokens", "The longest prompt, less than T. Unset: T // 2.", SHAPE),
    _uint("max_input_length", "Legacy name of --max-input-tokens.", SHAPE),
    _uint("max_batch_total_tokens", "B x T; checked, and with max-total-tokens another way to say B.", SHAPE),
    _uint("max_batch_prefill_tokens", "Prompt tokens that may be prefilled between two decode steps, from "
          "max-input-tokens to B x max-input-tokens. Unset: the latter.", SHAPE),
    _uint("max_concurrent_requests", "Requests inside at one time, running and queued, of all replicas; one "
          "more gets 429. Unset: at least one for each slot.", LIMITS, 128),
    _uint("max_best_of", "Largest best_of.", LIMITS, 2),
    _uint("max_stop_sequences", "Largest number of stop sequences.", LIMITS, 4),
    _uint("max_top_n_tokens", "Largest top_n_tokens.", LIMITS, 5),
    _uint("max_client_batch_size", "Prompts in one /v1/completions request; more get 422.", LIMITS, 4),
    _switch("approximate_top_p", "Accept top_p on a model that samples on the device, which keeps fewer "
          "tokens than the exact top_p does. Unset: such requests get 422.", LIMITS),
    _switch("disable_grammar_support", "Refuse grammars, response formats and tools.", LIMITS),
    _uint("payload_limit", "Largest request body, in bytes.", LIMITS, 2_000_000),
    _uint("validation_workers", "Threads that tokenize prompts.", LIMITS, 2),
    Flag("waiting_served_ratio", float, "Queued requests join early when there are this many for each "
         "running one.", SCHEDULING, 0.3),
    _uint("max_waiting_tokens", "Decode steps after which queued requests join in any case.", SCHEDULING, 20),
    Flag("max_prefill_stall", float, "Seconds of prefills that running requests may wait between two of "
         "their tokens; at least one prefill is always done.", SCHEDULING, 1.0),
    _text("prefill_mode", "insert (a new request leaves the others' KV cache alone) or rebuild (all prompts "
          "are prefilled again); auto means what the backend does best.", SCHEDULING, "auto",
          choices=("auto", "insert", "rebuild")),
    _text("hostname", "IP address to listen on, or localhost. Anything else becomes 0.0.0.0 with a warning: "
          "containers set HOSTNAME to their name.", HTTP, "0.0.0.0"),  # noqa: S104 as TGI
    _uint("port", "Port to listen on; 0 takes a free one. AIP_HTTP_PORT, which Vertex AI sets, overrides it.",
          HTTP, 3000, most=65535, short="-p"),
    _text("cors_allow_origin", "Origin that browsers may call from; may be repeated.", HTTP, many=True),
    _text("api_key", "Bearer token that generating requests must show.", HTTP, secret=True),
    _uint("graceful_termination_timeout", "Seconds that running requests get to finish after SIGTERM.",
          PROCESSES, 90, short="-g"),
    _text("shard_uds_path", "Base path of the generators' unix sockets; -RANK is added. Unset: a private "
          "directory, removed at the end.", PROCESSES),
    _text("master_shard_uds_path", "Exact path of the unix socket of rank 0.", PROCESSES),
    _uint("max_restarts", "How often each generator may be restarted within five minutes; after that the "
          "others serve without it, and without others the launcher gives up.", PROCESSES, 3),
    _uint("num_shard", "Tensor-parallel degree: NeuronCores that one replica spans. A compiled model "
          "fixes it; on CPU it is 1. Unset: what the model was compiled for.", PROCESSES),
    _text("sharded", "true: more than one core for each replica; false: one.", PROCESSES,
          choices=("true", "false")),
    _uint("data_parallel_size", "Replicas: generators that each hold the whole model, with a static batch "
          "and NeuronCores of their own, behind the one router. The flags of the static shape and of "
          "scheduling are those of each replica.", PROCESSES, 1),
    _switch("json_output", "Log one JSON object per line.", LOGGING),
    _text("otlp_endpoint", "Collector to export traces to, over gRPC: http://HOST:PORT.", LOGGING),
    _text("otlp_service_name", "service.name of the traces.", LOGGING, OTLP_SERVICE_NAME),
    _switch("env", "Log the versions and devices of this machine, then start.", LOGGING, short="-e",
            env=False),
    _switch("version", "Print the version and exit.", LOGGING, env=False),
    _switch("strict", "Pay the real static cost: B rows in every step, padded prefills.", EMULATION),
    _switch("poison", "Write garbage wherever a real device would, so that wrong scheduling shows.",
            EMULATION),
    _switch("on_device_sampling", "Hand over tokens instead of logits, as a model that was exported with "
          "sampling on the device does: no log-probabilities, seeds, penalties, grammars.", EMULATION),
    _text("simulated_clock", "Answer at the speed of a device: PREFILL_S:B=STEP_S,B=STEP_S... in seconds. "
          "Figures taken with it are simulated.", EMULATION),
)  # fmt: skip

_ONE_DEVICE = "One generator process drives the device; nothing is exchanged between ranks."
_FIXED_KERNELS = "CUDA only; graphs here are compiled, or run by PyTorch on CPU."

_IGNORED = (
    _ignored("prometheus_port", int, "/metrics is served on the main port."),
    _ignored("master_addr", str, _ONE_DEVICE),
    _ignored("master_port", int, _ONE_DEVICE),
    _ignored("weights_cache_override", str, "Weights are read where the model is, or from the hub cache."),
    _ignored("speculate", int, "No speculative decoding yet; it would change speed, never the answer."),
    _ignored("cuda_graphs", str, _FIXED_KERNELS),
    _ignored("cuda_memory_fraction", float, "The static KV cache is allocated once and never grows."),
    _ignored("disable_custom_kernels", bool, _FIXED_KERNELS),
    _ignored("watermark_gamma", float, "Answers are never watermarked."),
    _ignored("watermark_delta", float, "Answers are never watermarked."),
    _ignored("ngrok", bool, "No tunnel is opened (nor does TGI 3 open one)."),
    _ignored("ngrok_authtoken", str, "No tunnel is opened.", secret=True),
    _ignored("ngrok_edge", str, "No tunnel is opened."),
    _ignored(
        "usage_stats", str, "Nothing is ever sent, whatever it says.", choices=("on", "off", "no-stack")
    ),
    _ignored(
        "enable_prefill_logprobs", bool, "Prompt logprobs are computed whenever a request asks for them."
    ),
)

_REFUSED = (
    _refused("quantize", str, "Only float32, bfloat16 and float16 weights are served; serving others under "
             "this flag would answer with another model than the one asked for."),
    _refused("kv_cache_dtype", str, "The KV cache has the type of the weights: choose it with --dtype."),
    _refused("rope_scaling", str, "It would change the model: set rope_scaling in its config.json."),
    _refused("rope_factor", float, "It would change the model: set rope_scaling in its config.json."),
    _refused("lora_adapters", str, "Adapters cannot be switched inside a static graph: merge them first."),
)  # fmt: skip

#: Every flag; a name appears once.
FLAGS: tuple[Flag, ...] = _HONOURED + _IGNORED + _REFUSED
BY_NAME: dict[str, Flag] = {flag.name: flag for flag in FLAGS}
