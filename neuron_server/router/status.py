"""What a GET tells: health, the model, the settings, the metrics. All of it is open, key or not."""

from __future__ import annotations

from fastapi import FastAPI, Response

from neuron_server.router.identity import docker_label, version
from neuron_server.router.json_reply import Json, dump
from neuron_server.router.service import READY, GenerationService


def add_routes(app: FastAPI, service: GenerationService) -> None:
    """Add the routes to ``app``; each answers HEAD too. They work before the service is open."""

    async def health() -> Response:
        phase = service.phase
        if phase == READY:
            return Response()
        content = {"error": "unhealthy", "error_type": "healthcheck", "phase": phase}
        return Response(dump(content), 503, media_type="application/json")

    async def info() -> Response:
        return Response(dump(_info(service)), media_type="application/json")

    async def models() -> Response:
        name = service.config.model_id
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": name}]
        return Response(dump({"object": "list", "data": listed}), media_type="application/json")

    async def metrics() -> Response:
        generators = service.generators
        if generators.info is not None:  # of generators that are gone, nothing runs and no slot is free
            service.metrics.batch.occupancy(
                queued=generators.queued, running=generators.running, free_slots=generators.free_slots
            )
            service.metrics.replicas.states(generators.states)
        return Response(service.metrics.render(), media_type="text/plain; charset=utf-8")

    for path, endpoint in (
        ("/", health),
        ("/health", health),
        ("/ping", health),
        ("/info", info),
        ("/metrics", metrics),
        ("/v1/models", models),
    ):
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"])


def _info(service: GenerationService) -> Json:
    """TGI's fourteen keys in its order, then ours (with the names TGI had for them through 2.2)."""
    config, backend = service.config, service.generators.info
    return {
        "model_id": config.model_id,
        "model_sha": config.revision,
        "model_pipeline_tag": config.pipeline_tag,
        "max_concurrent_requests": config.max_concurrent_requests,
        "max_best_of": config.max_best_of,
        "max_stop_sequences": config.max_stop_sequences,
        "max_input_tokens": config.max_input_tokens,
        "max_total_tokens": config.max_total_tokens,
        "validation_workers": config.validation_workers,
        "max_client_batch_size": config.max_client_batch_size,
        "router": "text-generation-router",
        "version": version(),
        "sha": None,
        "docker_label": docker_label(),
        "model_dtype": None if backend is None else backend.dtype,
        "model_device_type": None if backend is None else backend.device,
        "model_output": None if backend is None else backend.output,
        "max_batch_size": config.batch_size,
        "max_batch_total_tokens": config.batch_size * config.max_total_tokens,
        "replicas": [
            {"rank": one.rank, "phase": one.phase, "free_slots": one.free_slots, "queued": one.queued}
            for one in service.generators.states
        ],
    }
