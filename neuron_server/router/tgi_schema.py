"""The bodies of TGI's own routes, in TGI's field order. Defaults hold when ``parameters`` is present."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from neuron_server.router.serde import F32, I32, U32, U64, USIZE, Schema, Strings


class GrammarType(Schema):
    """A constraint on the text. Parsed, so that a malformed one is refused as such; not served yet."""

    type: Literal["json", "json_object", "regex", "json_schema"]
    #: A JSON value of any shape; which one is right depends on ``type``.
    value: Any


class GenerateParameters(Schema):
    """``None`` means absent; ranges are checked by ``validation``, types and integer widths here."""

    best_of: USIZE | None = None
    temperature: F32 | None = None
    repetition_penalty: F32 | None = None
    frequency_penalty: F32 | None = None
    top_k: I32 | None = None
    top_p: F32 | None = None
    typical_p: F32 | None = None
    do_sample: bool = False
    max_new_tokens: U32 | None = None
    return_full_text: bool | None = None
    stop: Strings = Field(default_factory=list)
    truncate: USIZE | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: U64 | None = None
    top_n_tokens: U32 | None = None
    grammar: GrammarType | None = None
    adapter_id: str | None = None


def _default_parameters() -> GenerateParameters:
    """TGI samples when the ``parameters`` key is absent, and only then."""
    return GenerateParameters(do_sample=True)


class GenerateRequest(Schema):
    """Body of ``/generate`` and ``/generate_stream``."""

    inputs: str
    parameters: GenerateParameters = Field(default_factory=_default_parameters)


class CompatGenerateRequest(GenerateRequest):
    """Body of ``/``: ``stream`` chooses the form of the answer."""

    stream: bool = False
