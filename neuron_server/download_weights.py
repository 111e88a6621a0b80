"""Find a model and fetch it from the hub if needed: a program of its own, so that the launcher stays light.

Its last line on stdout is an object with ``path``, ``revision`` and ``pipeline_tag``; on failure the status
is 1 and the last line on stderr says why.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence

from neuron_server import logs
from neuron_server.errors import ModelError
from neuron_server.lifeline import die_with_parent


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, fetch, report; the exit status."""
    args = _parser().parse_args(argv)
    logs.setup(json_output=args.json_output)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when the hub client is imported
    from neuron_server.backends import checkpoint

    die_with_parent()
    try:
        found = checkpoint.find(
            args.model_id,
            args.revision,
            config_only=args.config_only,
            trust_remote_code=args.trust_remote_code,
            compiled=args.compiled,
        )
    except ModelError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted: what has arrived is kept, and the next start goes on from there\n")
        return 128 + signal.SIGINT
    result = {"path": str(found.path), "revision": found.revision, "pipeline_tag": found.pipeline_tag}
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m neuron_server.download_weights", description=__doc__)
    parser.add_argument("model_id", help="hub id, or a local directory (then nothing is fetched)")
    parser.add_argument("--revision", help="branch, tag or commit; default main")
    parser.add_argument("--config-only", action="store_true", help="all but the weights")
    parser.add_argument("--trust-remote-code", action="store_true", help="fetch the model's own code too")
    parser.add_argument("--compiled", action="store_true", help="what was compiled for Neuron too")
    parser.add_argument("--json-output", action="store_true", help="log as JSON lines")
    return parser


if __name__ == "__main__":
    sys.exit(main())
