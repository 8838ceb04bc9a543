"""Server reflection, which grpcurl and similar programs use to read services and messages: versions 1 and 1alpha.

https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType

import grpc
from google.protobuf import any_pb2, empty_pb2, wrappers_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from torchmar.grpc.wire import (
    inference_pb2,
    management_pb2,
    open_inference_pb2,
    tensorflow_pb2,
    tensorflow_serving_pb2,
)
from torchmar.server.grpc.calls import Method

ALPHA, NAME = "grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"


class Reflection:
    """The service under one of its names; both have the same messages.

    Args:
        name: name of the service.
        services: the names of all services of the server.
    """

    def __init__(self, name: str, services: Sequence[str]) -> None:
        self.name = name
        self._servicer = reflection.aio.ReflectionServicer([*services, ALPHA, NAME], pool=_POOL)

    def methods(self) -> Mapping[str, Method]:
        """Return the methods by their names."""
        method = grpc.stream_stream_rpc_method_handler(
            self._servicer.ServerReflectionInfo,
            reflection_pb2.ServerReflectionRequest.FromString,
            reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return {"ServerReflectionInfo": method}


def _pool() -> DescriptorPool:
    """Return a pool with the contracts of all services.

    Some are served under package names of other projects. They are only in this pool, because the process' default pool
    may have the real ones, in a program that imports the messages of KServe, Triton or TensorFlow.
    """
    pool = DescriptorPool()
    modules = (
        any_pb2,
        empty_pb2,
        wrappers_pb2,
        inference_pb2,
        management_pb2,
        open_inference_pb2,
        health_pb2,
        reflection_pb2,
    )
    triton = _renamed(open_inference_pb2, "org.pytorch.serve.grpc.openinference", "inference")
    triton.name = "grpc_service.proto"
    reflection_v1 = _renamed(reflection_pb2, "grpc.reflection.v1alpha", "grpc.reflection.v1")
    reflection_v1.name = "grpc/reflection/v1/reflection.proto"
    tensorflow = [
        _renamed(module, "torchmar.wire.tensorflow", "tensorflow")
        for module in (tensorflow_pb2, tensorflow_serving_pb2)
    ]
    for file in (*map(_copy, modules), triton, reflection_v1, *tensorflow):
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def _copy(module: ModuleType) -> FileDescriptorProto:
    file = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    return file


def _renamed(module: ModuleType, package: str, other: str) -> FileDescriptorProto:
    """Return a contract in which its messages, and those that it imports, are in another package."""
    renamed = _copy(module)
    renamed.package = renamed.package.replace(package, other, 1)
    before, after = f".{package}.", f".{other}."

    def rename(messages: Iterable[DescriptorProto]) -> None:
        for message in messages:
            for field in message.field:
                if field.type_name:  # a scalar has none, and an empty one is not allowed
                    field.type_name = field.type_name.replace(before, after, 1)
            rename(message.nested_type)

    rename(renamed.message_type)
    for service in renamed.service:
        for method in service.method:
            method.input_type = method.input_type.replace(before, after, 1)
            method.output_type = method.output_type.replace(before, after, 1)
    return renamed


_POOL = _pool()
