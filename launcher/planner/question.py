"""From flags and model to the question asked of every instance; settings that cannot work end here."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.device.instances import INSTANCES, TENSOR_PARALLEL_DEGREES, Instance
from launcher.memory_account import ITEMSIZE
from launcher.planner import families
from launcher.planner.candidates import Question, Wish
from launcher.planner.families import Support
from launcher.planner.planned import PlannedModel
from launcher.planner.prediction import Workload
from neuron_server.compiled_model import check_servable
from neuron_server.errors import ConfigError, ModelError
from neuron_server.models import ModelFacts, StaticFacts, check_supported

#: The length of every published figure, and the longest that optimum-neuron chooses by itself.
DEFAULT_LENGTH = 4096
#: What optimum-neuron takes where the configuration knows no positions (bloom, which was trained on so many).
UNBOUNDED_LENGTH = 2048
#: What Neuron models are compiled in when the checkpoint has no 16-bit type of its own.
_DEFAULT_DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True)
class Settings:
    """The flags of ``plan``; ``None``: not given."""

    instances: tuple[str, ...] = ()
    max_total_tokens: int | None = None
    max_input_tokens: int | None = None
    max_batch_size: int | None = None
    num_shard: int | None = None
    data_parallel_size: int | None = None
    dtype: str | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None


def instances_of(settings: Settings) -> tuple[Instance, ...]:
    """The instances to plan for; ``ConfigError`` (rule ``argument``) for a name that is none of them."""
    for name in settings.instances:
        if name not in INSTANCES:
            known = ", ".join(INSTANCES)
            raise ConfigError(f"--instance is {name!r}, but must be one of {known}")
    names = dict.fromkeys(settings.instances) or INSTANCES
    return tuple(INSTANCES[name] for name in names)


def dtype_of(settings: Settings, model: PlannedModel) -> str:
    """The type of weights and cache on the device."""
    static = model.facts.static
    compiled = None if static is None else static.dtype
    if settings.dtype and compiled and settings.dtype != compiled:
        raise _not_compiled_for("dtype", settings.dtype, compiled, "argument")
    known = model.facts.dtype if model.facts.dtype in ("bfloat16", "float16") else None
    chosen = settings.dtype or compiled or known or _DEFAULT_DTYPE
    if chosen not in ITEMSIZE:
        raise ConfigError(f"--dtype is {chosen!r}, but must be one of {', '.join(ITEMSIZE)}")
    return chosen


def support_of(facts: ModelFacts, name: str) -> Support:
    """Who serves the model that the user calls ``name``.

    Raises ``ModelError``: rule ``unsupported_model`` for what nobody does, with the reason; rule
    ``neuron_target`` for a model compiled for another device.
    """
    check_supported(facts)
    static = facts.static
    if static is None:
        return families.support(facts.model_type)
    if static.images:
        raise ModelError("the model was compiled for images; only text is served", rule="unsupported_model")
    check_servable(name, static)
    if static.target == "trn2":
        raise ModelError("the model was compiled for trn2, and Inferentia2 is another", rule="neuron_target")
    return families.support(facts.model_type, static.generation)


def question(settings: Settings, model: PlannedModel, support: Support) -> Question:
    """Check the settings against each other and the model; raises ``ConfigError``, one rule for each flag."""
    static = model.facts.static
    itemsize = ITEMSIZE[dtype_of(settings, model)]
    wish = _compiled(settings, static, itemsize) if static else _free(settings, model, support, itemsize)
    return Question(model, support, wish, _workload(settings, wish))


def _compiled(settings: Settings, static: StaticFacts, itemsize: int) -> Wish:
    """A compiled model has one configuration; a flag may only repeat it."""
    degree = static.tensor_parallel or static.cores
    for name, given, compiled, rule in (
        ("max-batch-size", settings.max_batch_size, static.batch_size, "batch_size"),
        ("max-total-tokens", settings.max_total_tokens, static.sequence_length, "max_total_tokens"),
        ("num-shard", settings.num_shard, degree, "num_shard"),
    ):
        if given is not None and compiled is not None and given != compiled:
            raise _not_compiled_for(name, given, compiled, rule)
    width = static.max_context_length
    longest = min(width, static.sequence_length - 1)
    if settings.max_input_tokens is not None and settings.max_input_tokens > longest:
        raise _not_compiled_for(
            "max-input-tokens", settings.max_input_tokens, f"up to {longest}", "max_input_tokens"
        )
    return Wish(
        length=static.sequence_length,
        batch_size=static.batch_size,
        tensor_parallel=degree or settings.num_shard,
        replicas=settings.data_parallel_size,
        itemsize=itemsize,
        prefill_width=width,
    )


def _not_compiled_for(name: str, given: object, compiled: object, rule: str) -> ConfigError:
    return ConfigError(
        f"--{name} is {given}, but the model was compiled for {compiled}: leave it out, or plan for the "
        "model it was compiled from",
        rule=rule,
    )


def _free(settings: Settings, model: PlannedModel, support: Support, itemsize: int) -> Wish:
    positions = model.facts.max_positions
    if positions is not None and positions < 2:
        raise ModelError(f"the model has {positions} position, and a slot takes 2", rule="unsupported_model")
    length = settings.max_total_tokens or min(DEFAULT_LENGTH, positions or UNBOUNDED_LENGTH)
    if positions is not None and length > positions:
        raise ConfigError(
            f"--max-total-tokens is {length}, but the model has {positions} positions", rule="max_positions"
        )
    widest = settings.max_input_tokens
    if widest is not None and not 1 <= widest < length:
        raise ConfigError(
            f"--max-input-tokens is {widest}, but must be from 1 to {length - 1} (--max-total-tokens - 1)",
            rule="max_input_tokens",
        )
    degree = settings.num_shard
    if degree is not None and degree not in TENSOR_PARALLEL_DEGREES:
        allowed = ", ".join(map(str, TENSOR_PARALLEL_DEGREES))
        raise ConfigError(f"--num-shard is {degree}, but Inferentia2 connects {allowed}", rule="num_shard")
    return Wish(
        length=length,
        batch_size=settings.max_batch_size,
        tensor_parallel=degree,
        replicas=settings.data_parallel_size,
        itemsize=itemsize,
        # The current generation compiles a prefill graph of its own width, whose every token is paid for.
        prefill_width=widest if support.generation == "nxd" else None,
    )


def _workload(settings: Settings, wish: Wish) -> Workload:
    """The user's, else the published one, made smaller in proportion where a slot is too short for it."""
    usual = Workload()
    prompt, new = settings.prompt_tokens, settings.new_tokens
    widest = min(wish.prefill_width or wish.length, wish.length - 1)
    if prompt is None and new is None and usual.prompt_tokens + usual.new_tokens > wish.length:
        new = max(1, wish.length * usual.new_tokens // (usual.prompt_tokens + usual.new_tokens))
        prompt = min(widest, wish.length - new)
    new = usual.new_tokens if new is None else new
    prompt = min(usual.prompt_tokens, widest) if prompt is None else prompt
    if prompt > widest or prompt + new > wish.length:
        raise ConfigError(
            f"--prompt-tokens {prompt} and --new-tokens {new} do not fit a slot of {wish.length} tokens with "
            f"prompts up to {widest}"
        )
    return Workload(prompt, new)
