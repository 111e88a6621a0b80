"""Where a model's chat template is: several files over the years, in TGI's order."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from neuron_server.errors import ChatTemplateError, ModelError
from neuron_server.text.chat import ChatTemplate, compile_template

logger = logging.getLogger(__name__)

#: The contents of a JSON file that is an object (``Any``: it is read with suspicion, key by key).
JsonFile = dict[str, Any]


def load(directory: str | Path, *, config_path: str | Path | None = None) -> ChatTemplate | None:
    """The chat template of the model in ``directory``, ``None`` if it has none.

    The first of these that has one: ``chat_template.json``; ``config_path``, which stands for
    ``tokenizer_config.json``; ``chat_template.jinja``; ``tokenizer_config.json``; ``processor_config.json``.
    (TGI does not know the ``.jinja`` file; transformers prefers it to ``tokenizer_config.json`` too.) Raises
    ``ModelError`` for a file that cannot be read and a template that does not compile.
    """
    directory = Path(directory)
    own = _read(directory / "tokenizer_config.json")
    given = _read(Path(config_path), must_exist=True) if config_path is not None else {}
    source, text = _find(directory, own, given, config_path)
    if config_path is not None and source != Path(config_path):
        logger.warning(
            "--tokenizer-config-path %s is not where the chat template is from: %s", config_path, source
        )
    if source is None or text is None:
        return None
    try:
        template = compile_template(
            text,
            bos_token=_token(given, "bos_token") or _token(own, "bos_token"),
            eos_token=_token(given, "eos_token") or _token(own, "eos_token"),
        )
    except ChatTemplateError as error:
        raise ModelError(f"the chat template in {str(source)!r} does not compile: {error}") from error
    logger.info("Chat template from %s", source)
    return template


def _find(
    directory: Path, own: JsonFile, given: JsonFile, config_path: str | Path | None
) -> tuple[Path | None, str | None]:
    """The file with the template, and the template."""
    legacy = directory / "chat_template.json"
    if (text := _template(_read(legacy))) is not None:
        return legacy, text
    if config_path is not None and (text := _template(given)) is not None:
        return Path(config_path), text
    jinja = directory / "chat_template.jinja"
    if jinja.is_file():
        try:
            return jinja, jinja.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"the chat template {str(jinja)!r} cannot be read: {error}") from error
    if (text := _template(own)) is not None:
        return directory / "tokenizer_config.json", text
    processor = directory / "processor_config.json"
    if (text := _template(_read(processor))) is not None:
        return processor, text
    return None, None


def _template(file: JsonFile) -> str | None:
    """The template in a file: one text, or the one called ``default`` of several."""
    found = file.get("chat_template")
    if isinstance(found, list):
        named = (entry for entry in found if isinstance(entry, dict) and entry.get("name") == "default")
        found = next(named, {}).get("template")
    return found if isinstance(found, str) else None


def _token(file: JsonFile, name: str) -> str | None:
    """A special token, written as text or as an object with its ``content``."""
    found = file.get(name)
    if isinstance(found, dict):
        found = found.get("content")
    return found if isinstance(found, str) else None


def _read(path: Path, *, must_exist: bool = False) -> JsonFile:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if must_exist:
            raise ModelError(f"--tokenizer-config-path {str(path)!r} does not exist") from None
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}
