"""TorchServe's inference API over gRPC as a serialized descriptor, for programs with any version of protobuf."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import any_pb2, descriptor_pb2, empty_pb2

from torchmar.grpc.wire import inference_pb2


def write(file: Path) -> Path:
    """Write a FileDescriptorSet of ``inference.proto`` and the files that it imports; return the file."""
    files = descriptor_pb2.FileDescriptorSet()
    for module in (any_pb2, empty_pb2, inference_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    file.write_bytes(files.SerializeToString())
    return file
