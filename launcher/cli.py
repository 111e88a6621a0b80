"""``text-generation-launcher``: from the command line to a served model, and to an exit status."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from launcher import host, log_lines
from launcher.backend_choice import is_neuron
from launcher.child import Forward
from launcher.command import build
from launcher.device.rooted import machine_root
from launcher.device.stack import installed
from launcher.download import fetch, is_local
from launcher.environment import child_environment, runtime_environment
from launcher.exit_codes import LaunchError, exit_code, last_line
from launcher.export_program import Runner
from launcher.neuron_model import Launch, neuron_model
from launcher.output import Output, text_notice
from launcher.parameters import Given, Parameters, Source
from launcher.plan import LaunchPlan, Model, check_arguments, plan
from launcher.report_output import open_closed_streams
from launcher.sockets import private_directory_name
from launcher.stopping import Stopping
from launcher.supervisor import Supervisor
from launcher.vertex import with_vertex_port
from neuron_server import logs
from neuron_server.errors import ConfigError, ModelError
from neuron_server.models import check_supported, check_weights, read_model

log = logging.getLogger("text_generation_launcher")

#: What clients see as the name of the embedded model.
DEMO_MODEL_ID = "neuronx-tgi-demo"

#: First words that are not flags -> "module:function" of what does it, given the words that follow.
VERBS: Mapping[str, str] = {
    "plan": "launcher.planner.command:main",
    "doctor": "launcher.doctor.command:main",
}

#: Columns of a ``--help`` that no terminal shows (``docker run IMAGE --help``): no flag's name is cut.
_HELP_WIDTH = "120"

#: The status of what Ctrl-C ended, as shells have it; a server that was started stops by itself, with 0.
_INTERRUPTED = 130


def main() -> None:
    """The console entry point; ends the process with a status from the table of exit codes."""
    open_closed_streams()
    if not sys.stdout.isatty():
        os.environ.setdefault("TERMINAL_WIDTH", _HELP_WIDTH)  # typer reads it
    verb = VERBS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    try:
        if verb is not None:
            module, _, function = verb.partition(":")
            sys.exit(getattr(importlib.import_module(module), function)(sys.argv[2:]))
        build(launch)()
    except (ConfigError, ModelError) as error:
        _fail(error.rule, last_line(error.rule, str(error)))
    except LaunchError as error:
        _fail(error.rule, f"{error}\nError: {error.kind}")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def launch(parameters: Parameters) -> int:
    """Serve until stopped; the exit status. Raises ``ConfigError``, ``ModelError`` and ``LaunchError``."""
    if parameters.switch("version"):
        sys.stdout.write(f"text-generation-launcher {importlib.metadata.version('neuronx-tgi')}\n")
        return 0
    json_output = parameters.switch("json_output")
    notice = log_lines.dropped if json_output else text_notice
    output = Output(sys.stdout.fileno(), notice=notice)
    log_lines.setup(output, json_output=json_output)
    try:
        asyncio.run(_serve(parameters, log_lines.Relay(output, json_output=json_output)))
    finally:
        output.close()
    return 0


async def _serve(parameters: Parameters, forward: Forward) -> None:
    stopping = Stopping()
    stopping.listen()
    if parameters.switch("env"):
        log.info("%s", await asyncio.to_thread(runtime_environment, _host().inventory))
    parameters = with_vertex_port(parameters, os.environ)
    log.info("%s", parameters.dump())
    env = {**child_environment(parameters, os.environ), "LOG_COLORIZE": str(int(logs.coloured()))}
    launch_plan = await _planned(parameters, env, forward, stopping)
    if launch_plan is None or stopping.requested.is_set():
        return
    count = len(launch_plan.generators)
    if not os.environ.get("COMPUTE_TYPE"):  # TGI's form, for the header x-compute-type
        env["COMPUTE_TYPE"] = f"{count}-{launch_plan.generators[0].backend}"
    for warning in launch_plan.warnings:
        log.warning("%s", warning)
    what = "One static batch" if count == 1 else f"{count} replicas, each with a static batch"
    log.info("%s of %s tokens:\n%s", what, launch_plan.shape, launch_plan.table())
    await Supervisor(launch_plan, env, forward, stopping).run()


async def _planned(
    parameters: Parameters, env: Mapping[str, str], forward: Forward, stopping: Stopping
) -> LaunchPlan | None:
    """The plan, once the model is on this machine; ``None`` when asked to stop during a download.

    A hub model is fetched in two steps, so that a setting that cannot work costs kilobytes, not the weights.
    """
    model_id = parameters.text("model_id")
    if model_id is None and not parameters["backend"].by_user:
        # The demo model is to work everywhere, and nobody keeps compiled configurations of it.
        parameters = parameters.replaced({"backend": Given("cpu", Source.DERIVED, "backend")})
    backend = check_arguments(parameters, _host())
    directory = private_directory_name()

    def planned(model: Model) -> LaunchPlan:
        return plan(parameters, model, _host(), private_directory=directory, environ=os.environ)

    if is_neuron(backend):
        found = await _for_neuron(parameters, Runner(env, forward, stopping), planned)
        return None if found is None else planned(found)
    if model_id is None:
        log.info(
            "No --model-id: serving the embedded demo model; it knows little, but streams like any other"
        )
        model = _local_model(DEMO_MODEL_ID, _demo_path(), parameters)
    elif is_local(model_id):
        if parameters.text("revision"):
            log.warning("--revision has no effect on a local directory")
        model = _local_model(model_id, model_id, parameters)
    else:
        config = await fetch(model_id, parameters, env, forward, stopping, config_only=True)
        if config is None:
            return None
        planned(Model(model_id, config.path, read_model(config.path), config.revision))
        whole = await fetch(model_id, parameters, env, forward, stopping, config_only=False)
        if whole is None:
            return None
        model = _local_model(model_id, whole.path, parameters, whole.revision)
        model = replace(model, pipeline_tag=whole.pipeline_tag)
        if whole.pipeline_tag is None:
            log.warning("no pipeline tag found for model %s", model_id)
    return planned(model)


async def _for_neuron(
    parameters: Parameters, runner: Runner, draft: Callable[[Model], object]
) -> Model | None:
    """The compiled model; ``None`` when asked to stop while it was fetched or compiled."""
    machine = Launch(parameters, runner, installed(machine_root(os.environ), os.environ), _host().inventory)
    model_id = parameters.text("model_id")
    if model_id is not None:
        return await neuron_model(machine, model_id, draft)
    log.info("No --model-id: serving the embedded demo model")
    demo = await neuron_model(machine, _demo_path(), draft)
    return demo and replace(demo, model_id=DEMO_MODEL_ID)


def _host() -> host.Host:
    """The machine, as it is now. Raises ``ConfigError`` for a ``NEURON_TGI_ROOT`` that is no directory."""
    return host.inspect(machine_root(os.environ), os.environ)


def _local_model(model_id: str, path: str, parameters: Parameters, revision: str | None = None) -> Model:
    """Facts of a model on disk, its weights looked at where the backend needs them."""
    facts = read_model(path)
    check_supported(facts, trust_remote_code=parameters.switch("trust_remote_code"))
    fake = parameters.text("backend") == "fake"
    weights = None if fake else check_weights(path).total_bytes
    return Model(model_id, str(Path(path).resolve()), facts, revision, weights)


def _demo_path() -> str:
    """The demo model beside the installed package, found without importing anything heavy."""
    spec = importlib.util.find_spec("neuron_server")
    if spec is None or spec.origin is None:
        raise ModelError("the package neuron_server is not installed", rule="model_missing")
    return str(Path(spec.origin).parent / "demo_model")


def _fail(rule: str, line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.exit(exit_code(rule))
