"""The model to serve on Neuron: a compiled one as it is, a plain one as a cached configuration compiles it.

Everything that can be known to be wrong is, before weights are fetched: first the flags, then whether there
is a configuration for them, then the plan with that configuration.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.cached_config import Choice, Wanted, select, wanted_of
from launcher.device.driver import require
from launcher.device.inventory import Inventory
from launcher.device.stack import Stack
from launcher.download import Fetched, fetch, is_local
from launcher.export_program import Runner, Source, cached, export
from launcher.neuron_checks import check_loadable, notes, target_of, unsupported
from launcher.neuron_store import Store, fingerprint, with_weights
from launcher.parameters import Given, Parameters
from launcher.parameters import Source as From
from launcher.plan import Model
from launcher.static_values import static_values
from neuron_server.compiled_model import check_compiled_files, lacks_weights
from neuron_server.errors import ModelError
from neuron_server.models import ModelFacts, StaticFacts, check_supported, read_model

log = logging.getLogger("text_generation_launcher")

Draft = Callable[[Model], object]
"""Plans with a model whose weights are not here yet; raises what a plan raises."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a model is found for."""

    parameters: Parameters
    runner: Runner
    stack: Stack
    inventory: Inventory


async def neuron_model(launch: Launch, model_id: str, draft: Draft) -> Model | None:
    """The model, whole and on disk; ``None`` when asked to stop meanwhile.

    Raises ``ConfigError``, ``ModelError`` and ``LaunchError``.
    """
    parameters = launch.parameters
    trust = parameters.switch("trust_remote_code")
    if is_local(model_id):
        model = _local(model_id)
    else:
        config = await _fetch(launch, model_id, parameters, config_only=True)
        if config is None:
            return None
        model = Model(model_id, config.path, read_model(config.path), config.revision)
    check_supported(model.facts, trust_remote_code=trust)
    static = model.facts.static
    if static is None:
        return await _from_plain(launch, model, draft)
    for note in notes(static):
        log.warning("%s", note)
    _check(launch, model, draft)
    if not is_local(model_id):
        whole = await _fetch(launch, model_id, parameters, config_only=False)
        if whole is None:
            return None
        model = replace(model, path=whole.path, pipeline_tag=whole.pipeline_tag)
    return await _whole(launch, model, static)


def _check(launch: Launch, model: Model, draft: Draft) -> None:
    """Whether it can be loaded here, and whether the flags go with it."""
    require(launch.inventory.driver, launch.stack.runtime)
    check_loadable(model.facts, launch.stack, launch.inventory, model_id=model.model_id)
    draft(model)


def _local(model_id: str) -> Model:
    return Model(model_id, os.path.realpath(model_id), read_model(model_id))


async def _whole(launch: Launch, model: Model, static: StaticFacts) -> Model | None:
    """The compiled model with its weights beside it, checked."""
    path = Path(model.path)
    if lacks_weights(path) and static.checkpoint_id is not None:
        parameters = _at(launch.parameters, static.checkpoint_revision)
        weights = await _fetch(launch, static.checkpoint_id, parameters, config_only=False)
        if weights is None:
            return None
        path = with_weights(launch.runner.env, path, Path(weights.path))
    files = check_compiled_files(path, static)
    return replace(model, path=str(path), weight_bytes=files.weight_bytes)


# -- plain models --------------------------------------------------------------------------------------------


async def _from_plain(launch: Launch, model: Model, draft: Draft) -> Model | None:
    facts = model.facts
    static_values(launch.parameters, facts)  # a flag that is wrong anyway needs no look at a cache
    source = _source(launch, model)
    store = Store.of(
        launch.runner.env, source.name, source.revision or fingerprint(source.path), launch.stack
    )
    wanted = wanted_of(
        launch.parameters,
        os.environ,
        cores=launch.inventory.usable_cores().count,
        target=target_of(launch.inventory.instance_type),
        compiler=launch.stack.compiler,
        checkpoint_dtype=facts.dtype,
    )
    path = store.remembered(wanted)
    if path is not None:
        log.info("Compiled before for the same flags: %s", path)
    else:
        chosen = await _choose(launch, source, store, wanted, facts)
        if chosen is None:
            return None
        _check(launch, replace(model, facts=replace(facts, static=chosen)), draft)
        path = await _compile(launch, source, store, chosen)
        if path is None:
            return None
        store.remember(wanted, path)
    found = read_model(path)
    if found.static is None:
        raise ModelError(f"{path} is no compiled model: remove it", rule="config_corrupt")
    compiled = replace(model, facts=found)
    _check(launch, compiled, draft)
    if source.model_id is not None:
        parameters = _at(launch.parameters, source.revision)
        weights = await _fetch(launch, source.model_id, parameters, config_only=False)
        if weights is None:
            return None
        compiled = replace(compiled, pipeline_tag=weights.pipeline_tag)
    return await _whole(launch, replace(compiled, path=str(path)), found.static)


def _source(launch: Launch, model: Model) -> Source:
    trust = launch.parameters.switch("trust_remote_code")
    if is_local(model.model_id):
        return Source(Path(model.path), trust_remote_code=trust)
    return Source(Path(model.path), model.model_id, model.revision, trust)


async def _choose(
    launch: Launch, source: Source, store: Store, wanted: Wanted, facts: ModelFacts
) -> StaticFacts | None:
    """The configuration to serve: of the cache or, where that does not answer, of what was compiled here."""
    stack = launch.stack
    if stack.optimum_neuron is None:
        raise ModelError(
            f"{source.name} was not compiled for Neuron, and optimum-neuron, which would do it, is not "
            "installed here: use the neuron image, or --backend cpu",
            rule="backend_unavailable",
        )
    reason = unsupported(facts.model_type, stack.optimum_neuron)
    if reason is not None:
        raise ModelError(reason, rule="unsupported_model")
    log.info(
        "%s was not compiled for Neuron: looking in the compile cache for %s",
        source.name,
        wanted.text or "its configurations",
    )
    stored = tuple(store.stored(wanted))
    try:
        entries = await cached(launch.runner, source)
    except ModelError as error:
        if not stored:
            raise
        log.warning("%s; choosing among the %d compiled here before", error, len(stored))
        entries = tuple(static for _, static in stored)
    if entries is None:
        return None
    anonymous = (replace(e, checkpoint_id=None, checkpoint_revision=None) for e in entries)
    choice = select(wanted, tuple(anonymous), model_id=source.name)
    _say(choice)
    return choice.chosen


def _say(choice: Choice) -> None:
    log.info("Chosen from the compile cache: %s", choice.chosen.form)
    if choice.alternatives:
        others = "\n".join(f"  {entry.form}" for entry in choice.alternatives[:20])
        log.info("%d more would do as well; flags choose among them:\n%s", len(choice.alternatives), others)


async def _compile(launch: Launch, source: Source, store: Store, chosen: StaticFacts) -> Path | None:
    place = store.place(chosen)
    if store.whole(place):
        log.info("Compiled before: %s", place)
        return place
    store.clear(place)
    if chosen.generation == "legacy" and source.model_id is not None:
        # transformers-neuronx compiles with the weights in hand.
        parameters = _at(launch.parameters, source.revision)
        if await _fetch(launch, source.model_id, parameters, config_only=False) is None:
            return None
    log.info("Compiling %s into %s; the graphs come from the cache", source.name, place)
    try:
        return await export(
            launch.runner, source, chosen, place, weights=source.path, sampling=chosen.on_device_sampling
        )
    except ModelError:
        if store.whole(place):  # another launch was faster
            return place
        raise


def _at(parameters: Parameters, revision: str | None) -> Parameters:
    """The parameters with another revision, for weights that are those of one commit."""
    return parameters.replaced({"revision": Given(revision, From.MODEL, "revision")})


async def _fetch(
    launch: Launch, model_id: str, parameters: Parameters, *, config_only: bool
) -> Fetched | None:
    run = launch.runner
    return await fetch(
        model_id, parameters, run.env, run.forward, run.stopping, config_only=config_only, compiled=True
    )
