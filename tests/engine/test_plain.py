import pytest
from model_backend import ModelBackend, expected_events, without_times

from neuron_server.engine.plain import generate
from neuron_server.errors import BackendError, ValidationError
from neuron_server.request import GenerationRequest


def test_gives_the_events_of_every_request_in_the_order_asked() -> None:
    requests = [GenerationRequest(tuple(range(1, n)), n - 1, n) for n in (5, 2, 9, 3)]
    backend = ModelBackend(2, 20)
    for request, events in zip(requests, generate(backend, requests), strict=True):
        assert without_times(events) == expected_events(request, 50)
    assert not backend.live


def test_raises_the_first_error() -> None:
    def refuse(rows: object) -> None:
        raise BackendError("no")

    with pytest.raises(ValidationError):
        generate(ModelBackend(2, 20, prompt=2), [GenerationRequest((1, 2, 3), 3, 1)])
    with pytest.raises(BackendError, match="no"):
        generate(ModelBackend(2, 20, on_prefill=refuse), [GenerationRequest((1, 2, 3), 3, 1)])
