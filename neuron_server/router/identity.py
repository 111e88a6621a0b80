"""What this server calls itself: version, image label, and the fingerprint made of both."""

from __future__ import annotations

import os
from functools import cache
from importlib import metadata


@cache
def version() -> str:
    """Version of the installed package."""
    return metadata.version("neuronx-tgi")


def docker_label() -> str | None:
    """Label of the image that this process runs in (``DOCKER_LABEL``), if it runs in one."""
    return os.environ.get("DOCKER_LABEL") or None


def fingerprint() -> str:
    """``system_fingerprint`` of OpenAI's routes: ``<version>-<docker label>``, or ``-native`` without one."""
    return f"{version()}-{docker_label() or 'native'}"
