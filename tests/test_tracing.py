"""What is read from outside: the context of a trace, and where traces go. And what costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from neuron_server.errors import ConfigError
from neuron_server.tracing import NO_SPAN, NO_TRACER, Endpoint, TraceParent, parse_endpoint, parse_traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize("version", ["00", "01", "fe"])
def test_a_traceparent_has_four_hexadecimal_parts(version):
    parsed = parse_traceparent(f" {version}-{TRACE.upper()}-{SPAN}-01 ")
    assert parsed == TraceParent(int(TRACE, 16), int(SPAN, 16), 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-extra",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01\n00-{TRACE}-{SPAN}-01",
        "-" * 100_000,
    ],
)
def test_anything_else_is_no_traceparent(text):
    assert parse_traceparent(text) is None


@pytest.mark.parametrize(
    ("url", "authority", "secure"),
    [
        ("http://localhost:4317", "localhost:4317", False),
        ("http://collector", "collector:4317", False),
        ("https://collector.example:443/", "collector.example:443", True),
        ("otel-agent.monitoring.svc:4317", "otel-agent.monitoring.svc:4317", False),
        ("10.0.0.7:55680", "10.0.0.7:55680", False),
        ("http://[::1]:4317", "[::1]:4317", False),
    ],
)
def test_an_endpoint_is_a_host_and_a_port(url, authority, secure):
    assert parse_endpoint(url) == Endpoint(authority, secure)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "grpc://collector:4317",
        "file:///tmp/x",
        "http://collector:port",
        "http://collector:0",
        "http://collector:65536",
        "http://two words:4317",
        "http://[::1:4317",
        "http://user:secret@collector:4317",
        "http://collector:4318/v1/traces",
        "http://collector:4317?x=y",
    ],
)
def test_a_malformed_endpoint_is_refused_by_the_name_of_its_flag(url):
    with pytest.raises(ConfigError, match=r"--otlp-endpoint .* write http://host:4317"):
        parse_endpoint(url)


def test_no_span_is_its_own_child_and_bears_everything():
    span = NO_TRACER.start("a", traceparent=f"00-{TRACE}-{SPAN}-01")
    with span.child("b") as child:
        child.set({"x": 1})
        child.event("y")
        child.fail("z")
    assert child is span is NO_SPAN
    assert span.traceparent is None


def test_without_an_endpoint_the_programs_import_no_opentelemetry():
    """FastAPI imports the bare API where it is installed; without an SDK behind it that does nothing."""
    program = (
        "import sys\n"
        "import neuron_server.serve_router, neuron_server.serve_generator, neuron_server.wire.spans\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
        "import neuron_server.router.app, neuron_server.router.http_span\n"
        "sys.exit(any(name in sys.modules for name in ('opentelemetry.sdk', 'opentelemetry.exporter')))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
