"""What a generation is asked to do, in ids, valid already.

The router parses and checks; from here downwards a request is trusted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from neuron_server.grammar import Grammar


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one row chooses its next token. Neutral values mean "off", as on TGI's wire.

    ``do_sample`` is final: the router has already turned it on when a warper (temperature, top_k, top_p,
    typical_p) asks for sampling, as TGI's reference shard does. ``seed`` (0 .. 2**64-1) is always set; it is
    used, and reported to the client, only when ``do_sample``.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    seed: int = 0
    top_n_tokens: int = 0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One generation.

    ``input_ids`` are the prompt followed by the tokens generated so far, so a request is *resumable* on any
    replica: the next token has index ``len(input_ids) - prompt_length`` and its draw depends on nothing but
    (seed, index), or is a new one where the device draws. ``max_new_tokens`` counts from here;
    ``len(input_ids) + max_new_tokens <= T`` and >= 1. ``stop_ids`` end the text (every EOS id of the
    generation config); empty means ignore EOS.
    ``prompt_logprobs`` asks for the log-probability of each prompt token on the first event. ``grammar``
    constrains everything after the prompt. ``traceparent`` (W3C) is the span that this work belongs to.
    """

    input_ids: tuple[int, ...]
    prompt_length: int
    max_new_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop_ids: frozenset[int] = frozenset()
    prompt_logprobs: bool = False
    grammar: Grammar | None = None
    traceparent: str | None = None

    @property
    def generated(self) -> int:
        """Tokens generated before this (re)submission; 0 for a fresh request."""
        return len(self.input_ids) - self.prompt_length
