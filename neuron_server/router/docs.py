"""Swagger UI at ``/docs``, from files of the package ``swagger-ui-bundle``: nothing comes from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse
from swagger_ui_bundle import swagger_ui_path

from neuron_server.router import openapi

#: What the page needs of the package's files.
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon-32x32.png": "image/png",
}


def add_routes(app: FastAPI) -> None:
    """Add the page, with and without a slash at its end, and its files.

    It refers to them by relative paths: the server may stand behind a prefix.
    """

    async def page() -> Response:
        return _page(assets="docs/", root="")

    async def page_with_slash() -> Response:
        return _page(assets="", root="../")

    app.add_api_route("/docs", page, methods=["GET", "HEAD"])
    app.add_api_route("/docs/", page_with_slash, methods=["GET", "HEAD"])
    for name, media_type in _ASSETS.items():
        app.add_api_route(f"/docs/{name}", _asset(name, media_type), methods=["GET", "HEAD"])


def _asset(name: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def asset() -> Response:
        return FileResponse(swagger_ui_path / name, media_type=media_type)

    return asset


def _page(*, assets: str, root: str) -> Response:
    return get_swagger_ui_html(
        openapi_url=root + openapi.PATH.removeprefix("/"),
        title="neuronx-tgi",
        swagger_js_url=assets + "swagger-ui-bundle.js",
        swagger_css_url=assets + "swagger-ui.css",
        swagger_favicon_url=assets + "favicon-32x32.png",
    )
