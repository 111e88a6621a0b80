"""``sagemaker-entrypoint``: SageMaker's environment in the launcher's terms.

SageMaker runs ``docker run IMAGE serve``, looks for ``/ping`` and ``/invocations`` on port 8080, and kills a
container 30 s after SIGTERM. The names of the variables are those of TGI's SageMaker images.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher import cli
from neuron_server.errors import ConfigError

#: Where SageMaker unpacks the model data of an endpoint.
MODEL_DATA = Path("/opt/ml/model")
PORT = "8080"
#: Below SageMaker's 30 s: a drain that is cut off helps nobody.
GRACE_S = "25"

_RENAMED = {
    "HF_MODEL_REVISION": "REVISION",
    "HF_MODEL_TRUST_REMOTE_CODE": "TRUST_REMOTE_CODE",
    "HF_MODEL_QUANTIZE": "QUANTIZE",
}


@dataclass(frozen=True, slots=True)
class Start:
    """What to start the launcher with: its arguments, the variables to set, and what to tell."""

    arguments: tuple[str, ...]
    variables: Mapping[str, str]
    notes: tuple[str, ...] = ()


def start(arguments: tuple[str, ...], environ: Mapping[str, str], model_data: Path = MODEL_DATA) -> Start:
    """Map SageMaker's environment; raises ``ConfigError`` when no model is named.

    Without ``HF_MODEL_ID`` the model data of the endpoint is served, if it holds a model.
    """
    model_id = environ.get("HF_MODEL_ID") or (
        str(model_data) if (model_data / "config.json").is_file() else ""
    )
    if not model_id:
        raise ConfigError("HF_MODEL_ID must be set")
    variables = {"MODEL_ID": model_id}
    variables |= {new: environ[old] for old, new in _RENAMED.items() if environ.get(old)}
    if not environ.get("GRACEFUL_TERMINATION_TIMEOUT"):
        variables["GRACEFUL_TERMINATION_TIMEOUT"] = GRACE_S
    # Endpoints of several containers tell each one its port.
    port = environ.get("SAGEMAKER_BIND_TO_PORT") or PORT
    rest = arguments[1:] if arguments[:1] == ("serve",) else arguments
    return Start(("--port", port, *rest), variables, _notes(environ))


def _notes(environ: Mapping[str, str]) -> tuple[str, ...]:
    gpus = environ.get("SM_NUM_GPUS")
    if not gpus:
        return ()
    return (
        f"SM_NUM_GPUS is {gpus} and has no effect: one generator process drives all cores that a model was "
        "compiled for",
    )


def main() -> None:
    """The console entry point: become the launcher."""
    try:
        made = start(tuple(sys.argv[1:]), os.environ)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    for note in made.notes:
        sys.stderr.write(f"{note}\n")
    os.environ.update(made.variables)
    sys.argv = ["text-generation-launcher", *made.arguments]
    cli.main()


if __name__ == "__main__":
    main()
