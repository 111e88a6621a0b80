"""What optimum-neuron's compile cache on the hub has of a model.

Answers only for the installed optimum-neuron and compiler; the functions are optimum-neuron's own, of three
generations. ``CUSTOM_CACHE_REPO`` names another repository than the public one.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from neuron_server.errors import ModelError

#: optimum-neuron from 0.2 on, and before.
_MODULES = ("optimum.neuron.cache.hub_cache", "optimum.neuron.utils.hub_cache_utils")
TASK, MODE = "text-generation", "inference"


def cached_entries(model_id: str, path: Path) -> list[Mapping[str, Any]]:  # Any: JSON
    """The Neuron configurations that were compiled for this architecture, as optimum-neuron writes them.

    ``path`` holds the model's ``config.json``; the architecture in it is what counts, so that a fine-tune
    finds what was compiled for its base. Raises ``ModelError`` (rule ``no_cached_config``) when the cache
    cannot be asked.
    """
    module = _module()
    lookup: Callable[..., list[Mapping[str, Any]]] = module.get_hub_cached_entries
    keywords = inspect.signature(lookup).parameters
    # 0.3.0 reads the configuration from the hub only.
    local = "mode" in keywords or hasattr(_single_entry(), "from_local_path")
    options = {"mode": MODE} if "mode" in keywords else {"task": TASK}
    try:
        found = lookup(str(path) if local else model_id, **options)
    except ValueError as error:  # no registry for this compiler in the cache, or (0.3.0) no hub id
        if "No hub cache registry" in str(error):
            return []
        raise _unanswered(error) from error
    except (OSError, RuntimeError) as error:  # the hub client's errors are OSErrors
        raise _unanswered(error) from error
    return [entry for entry in found if isinstance(entry, Mapping)]


def repository() -> str:
    """The hub repository that is asked."""
    utilities = importlib.import_module("optimum.neuron.utils.cache_utils")
    return str(utilities.get_hf_hub_cache_repo())


def _module() -> ModuleType:
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name + ".").startswith(error.name + "."):
                raise _not_here(error) from error
    raise _not_here(ModuleNotFoundError("optimum.neuron"))


def _single_entry() -> object:
    try:
        return importlib.import_module("optimum.neuron.cache.entries.single_model").SingleModelCacheEntry
    except ModuleNotFoundError:
        return None


def _unanswered(error: Exception) -> ModelError:
    return ModelError(
        f"the compile cache could not be asked ({type(error).__name__}: {_first_line(error)}): check the "
        "network, HF_TOKEN and CUSTOM_CACHE_REPO",
        rule="no_cached_config",
    )


def _not_here(error: ModuleNotFoundError) -> ModelError:
    return ModelError(
        f"optimum-neuron, or something that it needs, is not installed here ({error}): use the neuron image, "
        "or --backend cpu",
        rule="backend_unavailable",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
