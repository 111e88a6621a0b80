"""The error tree, drawn once.

The core raises these and knows no numbers: each edge has one exhaustive table (HTTP status in
``router/errors.py``, gRPC status in ``wire/codec.py``, exit code in ``launcher/exit_codes.py``).
"""

from __future__ import annotations


class NeuronTgiError(Exception):
    """Root of everything this project raises on purpose. ``error_type`` is TGI's word for the kind."""

    error_type = "internal"


# -- what a client did wrong ---------------------------------------------------------------------------------


class ValidationError(NeuronTgiError):
    """A parameter or length rule is broken; the message names it (without TGI's prefix)."""

    error_type = "validation"


class ChatTemplateError(NeuronTgiError):
    """The model's chat template refused the messages, or failed."""

    error_type = "template_error"


class NoChatTemplateError(ChatTemplateError):
    """The model has no chat template, so it cannot chat."""


class ToolError(NeuronTgiError):
    """Tools that do not fit together, or an answer that is no call of one."""

    error_type = "tool_error"


class OverloadedError(NeuronTgiError):
    """No permit is free: ``--max-concurrent-requests`` requests are already inside."""

    error_type = "overloaded"


class UnavailableError(NeuronTgiError):
    """Not ready to serve: loading, warming up or draining; the message says which."""

    error_type = "unavailable"


# -- what went wrong while generating ------------------------------------------------------------------------


class GenerationError(NeuronTgiError):
    """The backend or the way to it failed for this request."""

    error_type = "generation"


class GeneratorLostError(GenerationError):
    """The connection to the generator broke. The request can be resumed on another or a restarted one."""


class IncompleteGenerationError(NeuronTgiError):
    """The events ended without a ``finish``."""

    error_type = "incomplete_generation"


# -- the static-shape contract of a backend ------------------------------------------------------------------


class BackendError(NeuronTgiError):
    """A call that breaks the static-shape contract; raised before any device work."""


class PromptTooLongError(BackendError):
    """More prompt tokens than the prefill graph takes."""


class EmptyPromptError(BackendError):
    """A row without tokens."""


class OneTokenPromptError(BackendError):
    """A one-token prompt given to an inserting prefill; it must enter through decode at position 0."""


class SlotOutOfRangeError(BackendError):
    """A slot number outside 0 .. B-1."""


class SlotDuplicateError(BackendError):
    """The same slot twice in one call."""


class SlotBusyError(BackendError):
    """An insert into a slot that is live."""


class SlotNotLiveError(BackendError):
    """A decode or release of a slot that is free."""


class LiveSlotOmittedError(BackendError):
    """A decode, or a rebuilding prefill, that leaves out a live slot: on a device it would be corrupted."""


class PositionMismatchError(BackendError):
    """A row's position is not the number of tokens its slot holds."""


class PositionOverflowError(BackendError):
    """A position at or beyond T."""


class TokenOutOfRangeError(BackendError):
    """A token id outside the vocabulary."""


class BatchTooLargeError(BackendError):
    """More rows than the batch has slots."""


class BadSamplingError(BackendError):
    """A row's on-device sampling outside what the device takes; it would draw from another distribution."""


class DeviceFailedError(NeuronTgiError):
    """Device work failed. The backend is dead and its process must exit."""


# -- what stops a process from starting ----------------------------------------------------------------------


class ConfigError(NeuronTgiError):
    """A setting that cannot work. Names the flag (or file key), the value, and what would be right."""

    def __init__(self, message: str, *, rule: str = "argument") -> None:
        super().__init__(message)
        #: Which rule was broken; the launcher's exit-code table is keyed by it.
        self.rule = rule


class ModelError(NeuronTgiError):
    """A model that cannot be served; ``rule`` as in ``ConfigError`` (missing, unsupported, corrupt ...)."""

    def __init__(self, message: str, *, rule: str = "model") -> None:
        super().__init__(message)
        self.rule = rule
