"""The model, when it is on this machine, and the flags with it: what the launcher would say, all at once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.doctor.case import Case
from launcher.doctor.finding import Finding, fail, of_error, ok, warn
from launcher.memory_account import size
from launcher.neuron_checks import mismatches, notes, unsupported
from launcher.plan import Model, check_arguments, plan
from launcher.sockets import private_directory_name
from neuron_server.compiled_model import check_compiled_files, lacks_weights
from neuron_server.errors import ConfigError, ModelError
from neuron_server.models import ModelFacts, check_supported, check_weights

#: Files of tokenizers that transformers can convert.
_SLOW = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")

_AGAIN = "copy it again from the original model"


def flags(case: Case) -> Iterator[Finding]:
    """What is wrong with the flags whatever the model is."""
    try:
        backend = check_arguments(case.parameters, case.host)
    except ConfigError as error:
        yield of_error("flags", error)
    else:
        yield ok("flags", f"they go together; the backend is {backend}")
    for sentence in case.parameters.without_effect():
        yield warn("flags", sentence)


def model(case: Case) -> Iterator[Finding]:
    """Configuration and weights."""
    model_id = case.parameters.text("model_id")
    if model_id is None:
        yield ok("model", "no --model-id, so none is looked at")
        return
    try:
        path, facts = case.model_path, case.facts
        if path is None or facts is None:
            yield ok("model", f"{model_id} is not on this machine yet: nothing of it is looked at")
            return
        check_supported(facts, trust_remote_code=case.parameters.switch("trust_remote_code"))
    except ModelError as error:
        yield of_error("model", error)
        return
    positions = "any number of" if facts.max_positions is None else str(facts.max_positions)
    dtype = facts.dtype or "of a type it does not say"
    yield ok("model", f"{facts.model_type}, {facts.num_layers} layers, {positions} positions, {dtype}")
    yield from _weights(case, path, facts)
    yield from _compiled(case, facts, model_id)
    yield from _tokenizer(path, facts)
    yield from _template(case, path)
    yield from _plan(case, path, facts, model_id)


# -- each of its own -----------------------------------------------------------------------------------------


def _weights(case: Case, path: Path, facts: ModelFacts) -> Iterator[Finding]:
    """Plain weights, or graphs and weights of a compiled model that NeuronCores would serve."""
    static = facts.static
    if case.on_neuron and static is not None and lacks_weights(path) and static.checkpoint_id is not None:
        yield ok("weights", f"not in the directory; they are fetched from {static.checkpoint_id}")
        return
    try:
        text, total = _measured(case, path, facts)
    except ModelError as error:
        yield of_error("weights", error)
        return
    free = case.host.available_bytes
    if free is not None and total > free:
        yield warn(
            "weights",
            f"{text}, {size(total)}, but the host has {size(free)} of memory available, through which they "
            "are loaded",
            "stop other processes, or take a larger instance",
        )
    else:
        yield ok("weights", f"{text}, {size(total)}, whole")


def _measured(case: Case, path: Path, facts: ModelFacts) -> tuple[str, int]:
    """The files in words, and the bytes of the weights; raises ``ModelError`` if one is not whole."""
    if facts.static is not None and case.on_neuron:
        files = check_compiled_files(path, facts.static)
        return f"{len(files.graphs)} graph(s) and {len(files.weights)} file(s)", files.weight_bytes
    found = check_weights(path)
    return f"{found.tensors} tensors in {len(found.files)} file(s)", found.total_bytes


def _compiled(case: Case, facts: ModelFacts, model_id: str) -> Iterator[Finding]:
    """A compiled model against what is installed and attached; a plain one against what can compile it."""
    static = facts.static
    if static is None:
        yield from _plain(case, facts)
        return
    if not case.on_neuron:
        yield ok("compiled", f"{static.form}; the CPU serves that shape from the plain weights")
        return
    wrong = False
    for error in mismatches(facts, case.stack, case.inventory, model_id=model_id):
        wrong = True
        yield of_error("compiled", error)
    for note in notes(static):
        yield warn("compiled", note)
    if not wrong:
        by = f"optimum-neuron {static.optimum_version or 'of unknown version'}"
        by += f" and neuronx-cc {static.compiler_version or 'of unknown version'}"
        yield ok("compiled", f"by {by}: {static.form}")


def _plain(case: Case, facts: ModelFacts) -> Iterator[Finding]:
    """The launcher compiles a plain model from a cached configuration, where it can."""
    if not case.on_neuron:
        return
    installed = case.stack.optimum_neuron
    reason = unsupported(facts.model_type, installed) if installed else None
    if reason is not None:
        found, _, fix = reason.rpartition(": ")
        yield fail("compiled", found, fix)
    else:
        yield warn(
            "compiled",
            "the model is not compiled: at start a configuration of it is looked for in the compile cache, "
            "and without one the launcher stops",
            "compile it first (text-generation-server export), or choose --backend cpu",
        )


def _tokenizer(path: Path, facts: ModelFacts) -> Iterator[Finding]:
    """Whether its files are there and can be read; loading it for real takes seconds, and transformers."""
    file = path / "tokenizer.json"
    if not file.is_file():
        slow = [name for name in _SLOW if (path / name).is_file()]
        slow += [found.name for found in path.glob("*.tiktoken")]
        if slow:
            yield ok(
                "tokenizer", f"no tokenizer.json; transformers makes one from {', '.join(slow)} at each start"
            )
        else:
            yield fail(
                "tokenizer",
                f"{path} has no tokenizer.json, nor another tokenizer's file",
                "copy the tokenizer's files of the original model into the directory",
            )
        return
    try:
        values = _json(file)
    except ModelError as error:
        yield fail("tokenizer", str(error), _AGAIN)
        return
    vocabulary = values.get("model")
    if not isinstance(vocabulary, dict):
        yield fail("tokenizer", f"{file} has no model in it", _AGAIN)
        return
    last = _last_id(values, vocabulary)
    if facts.vocab_size and last is not None and last >= facts.vocab_size:
        yield warn(
            "tokenizer",
            f"it has token {last}, and the model's vocabulary ends before {facts.vocab_size}",
            "take both from the same model, unless no prompt uses such tokens",
        )
    else:
        yield ok("tokenizer", f"tokenizer.json, {vocabulary.get('type') or 'of unknown type'}")


def _last_id(values: Mapping[str, Any], vocabulary: Mapping[str, Any]) -> int | None:  # Any: JSON
    """The highest token id that the file names; ``None`` for a form we do not read."""
    words = vocabulary.get("vocab")
    ids = (
        list(words.values())
        if isinstance(words, dict)
        else [len(words) - 1]
        if isinstance(words, list)
        else []
    )
    added = values.get("added_tokens")
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return max((i for i in ids if isinstance(i, int)), default=None)


def _template(case: Case, path: Path) -> Iterator[Finding]:
    """The file that the router would take the chat template from; whether it compiles, the router says."""
    given = case.parameters.text("tokenizer_config_path")
    candidates = [
        path / "chat_template.json",
        *([Path(given)] if given else []),
        path / "chat_template.jinja",
    ]
    candidates += [path / "tokenizer_config.json", path / "processor_config.json"]
    for file in candidates:
        if not file.is_file():
            continue
        if file.suffix == ".jinja":
            yield ok("chat template", f"from {file}")
            return
        try:
            found = _json(file).get("chat_template")
        except ModelError as error:
            yield fail("chat template", str(error), _AGAIN)
            return
        if found:
            yield ok("chat template", f"from {file}")
            return
    yield warn(
        "chat template",
        "the model has none, so /v1/chat/completions is refused",
        "fine for a base model; else name a file that has one with --tokenizer-config-path",
    )


def _plan(case: Case, path: Path, facts: ModelFacts, model_id: str) -> Iterator[Finding]:
    """The launcher's own plan: whatever it refuses at start, it refuses here."""
    if case.on_neuron and facts.static is None:
        return  # it depends on what the compile cache has
    total: int | None = None
    with contextlib.suppress(ModelError):
        _, total = _measured(case, path, facts)
    described = Model(model_id, str(path.resolve()), facts, weight_bytes=total)
    directory = private_directory_name()
    try:
        made = plan(case.parameters, described, case.host, private_directory=directory, environ=case.environ)
    except (ConfigError, ModelError) as error:
        yield of_error("plan", error)
        return
    ignored = case.parameters.without_effect()  # said by another check
    for sentence in (warning for warning in made.warnings if warning not in ignored):
        yield warn("plan", sentence)
    first = made.generators[0]
    replicas = f"{len(made.generators)} replica(s) of {made.shape} tokens in {first.dtype} on {first.backend}"
    yield ok("plan", replicas)


def _json(file: Path) -> Mapping[str, Any]:
    """The JSON object in a file. Raises ``ModelError``."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read as JSON ({error})", rule="config_corrupt") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} must hold a JSON object", rule="config_corrupt")
    return value
