"""The committed generated code says what ``protos/generator.proto`` says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from neuron_server.wire import pb
from neuron_server.wire.pb import generator_pb2

ROOT = Path(__file__).parents[2]
PB = Path(pb.__file__).parent
NAME = "neuron_server/wire/pb/generator"


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory) -> Path:
    pytest.importorskip("grpc_tools")
    out = tmp_path_factory.mktemp("protos")
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-Ineuron_server/wire/pb={ROOT / 'protos'}"),
            *(f"--python_out={out}", f"--pyi_out={out}", f"--descriptor_set_out={out / 'set'}"),
            f"{NAME}.proto",
        ],
        check=True,
        cwd=ROOT,
    )
    return out


def test_the_messages_are_those_of_the_proto_file(regenerated):
    """Compared as descriptors: the text differs from one version of protoc to the next."""
    files = descriptor_pb2.FileDescriptorSet.FromString((regenerated / "set").read_bytes()).file
    committed = descriptor_pb2.FileDescriptorProto()
    generator_pb2.DESCRIPTOR.CopyToProto(committed)
    (proto,) = files
    proto.ClearField("source_code_info")
    for message in [*proto.message_type, *committed.message_type]:
        for field in message.field:
            field.ClearField("json_name")
    assert committed == proto


def test_the_type_stubs_are_those_of_the_proto_file(regenerated):
    assert declared(PB / "generator_pb2.pyi") == declared(regenerated / f"{NAME}_pb2.pyi")


def declared(stub: Path) -> dict[str, dict[str, str]]:
    """Each class of a stub with its annotated names."""
    return {
        node.name: {
            ast.unparse(item.target): ast.unparse(item.annotation)
            for item in node.body
            if isinstance(item, ast.AnnAssign)
        }
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ClassDef)
    }


def test_the_generated_code_names_no_runtime_that_it_needs():
    """From protoc 26 on it would: and so lock out the protobuf 3.20 that goes with optimum-neuron 0.0.28."""
    assert "runtime_version" not in (PB / "generator_pb2.py").read_text()
