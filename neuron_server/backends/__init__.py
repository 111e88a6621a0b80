"""What computes logits. Siblings of the engine, which knows only ``neuron_server.backend``."""

from neuron_server.backends.registry import load_backend

__all__ = ["load_backend"]
