"""``text-generation-server download-weights --export``: fetch a model and compile it as the cache has it.

What TGI's verb does on a Neuron machine; here it has to be asked for, because it needs the device's software
and takes its time. What it leaves in the hub's cache is what the launcher finds at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping

from launcher.device import inventory
from launcher.device.rooted import machine_root
from launcher.device.stack import installed
from launcher.environment import hub_environment
from launcher.export_command import INTERRUPTED, Relay
from launcher.export_program import Runner
from launcher.neuron_model import Launch, neuron_model
from launcher.parameters import Parameters
from launcher.plan import Model
from launcher.stopping import Stopping
from neuron_server import logs


def run(model_id: str, parameters: Parameters, environ: Mapping[str, str], *, json_output: bool) -> int:
    """Do it; the exit status, and the place on the last line of stdout, as the plain download has it.

    Raises ``ConfigError``, ``ModelError`` and ``LaunchError``.
    """
    logs.setup(json_output=json_output)
    found = asyncio.run(_find(model_id, parameters, environ, json_output=json_output))
    if found is None:
        return INTERRUPTED
    result = {"path": found.path, "revision": found.revision, "pipeline_tag": found.pipeline_tag}
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


async def _find(
    model_id: str, parameters: Parameters, environ: Mapping[str, str], *, json_output: bool
) -> Model | None:
    root, stopping = machine_root(environ), Stopping()
    stopping.listen()
    env = {**hub_environment(environ), "PYTHONUNBUFFERED": "1"}
    runner = Runner(env, Relay(json_output=json_output), stopping)
    launch = Launch(parameters, runner, installed(root, environ), inventory.inspect(root, environ))
    return await neuron_model(launch, model_id, lambda _: None)
