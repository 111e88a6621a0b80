"""``--tokenizer-config-path``: the file that the chat template is taken from."""

from __future__ import annotations

import json
from pathlib import Path

from launcher.parameters import Parameters
from neuron_server.errors import ConfigError

_NAME = "tokenizer_config_path"


def tokenizer_config_path(parameters: Parameters) -> str | None:
    """The absolute path, once the file was read as a JSON object; ``None`` when the flag is not given.

    Raises ``ConfigError`` (rule ``tokenizer_config``): TGI would go on with the template of the model, and
    answer from another prompt than the one that was written.
    """
    text = parameters.text(_NAME)
    if text is None:
        return None
    given = parameters[_NAME]
    path = Path(text)
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise _wrong(f"{given}, but cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _wrong(f"{given}, but is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _wrong(f"{given}, but must hold a JSON object")
    return str(path.resolve())


def _wrong(message: str) -> ConfigError:
    return ConfigError(f"{message}. Name a tokenizer_config.json", rule="tokenizer_config")
