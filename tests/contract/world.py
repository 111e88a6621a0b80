"""Where one contract test runs: a subject in one of its modes, with one kind of output."""

from __future__ import annotations

from dataclasses import dataclass

from contract.subject import Subject, Wanted

from neuron_server.backend import Backend, OutputKind, PrefillMode
from neuron_server.shape import StaticShape

#: The shape of every contract test that does not say otherwise: slots, tokens of a slot, longest prompt.
B, T, C = 4, 32, 20


@dataclass(frozen=True, repr=False)
class World:
    """Its text is the id of the test's parameter."""

    subject: Subject
    mode: PrefillMode
    output: OutputKind

    def __repr__(self) -> str:
        return f"{self.subject.name}-{self.mode}-{self.output}"

    def make(
        self,
        batch_size: int = B,
        max_length: int = T,
        max_prompt_tokens: int = C,
        *,
        output: OutputKind | None = None,
        max_top_k: int = 256,
    ) -> Backend:
        """A fresh backend; the caller closes it."""
        return self.subject.make(
            Wanted(
                StaticShape(batch_size, max_length),
                max_prompt_tokens,
                self.mode,
                output or self.output,
                max_top_k,
            )
        )
