"""Run KServe's wrapper of TorchServe, unchanged, at other ports: FOLDER MESSAGES REST_PORT GRPC_PORT.

FOLDER has the files of ``kubernetes/kserve/kserve_wrapper`` of https://github.com/pytorch/serve, whose ports, 8080 and
8081, are constants. MESSAGES is a file with TorchServe's ``inference.proto`` as a serialized descriptor: protoc and the
protobuf of this version of KServe do not fit together.
"""

import runpy
import sys
import types
from pathlib import Path

import kserve.model_server
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

folder, messages, rest_port, grpc_port = sys.argv[1:]
original = kserve.model_server.ModelServer
service = "org.pytorch.serve.grpc.inference"


def server(**options):
    return original(**{**options, "http_port": int(rest_port), "grpc_port": int(grpc_port)})


class InferenceAPIsServiceStub:
    """The client of the one call that the wrapper sends."""

    def __init__(self, channel):
        self.Predictions = channel.unary_unary(
            f"/{service}.InferenceAPIsService/Predictions",
            request_serializer=inference_pb2.PredictionsRequest.SerializeToString,
            response_deserializer=inference_pb2.PredictionResponse.FromString,
        )


pool = descriptor_pool.DescriptorPool()
for file in descriptor_pb2.FileDescriptorSet.FromString(Path(messages).read_bytes()).file:
    pool.Add(file)
inference_pb2, inference_pb2_grpc = types.ModuleType("inference_pb2"), types.ModuleType("inference_pb2_grpc")
for name in ("PredictionsRequest", "PredictionResponse"):
    described = pool.FindMessageTypeByName(f"{service}.{name}")
    setattr(inference_pb2, name, message_factory.MessageFactory(pool).GetPrototype(described))
inference_pb2_grpc.InferenceAPIsServiceStub = InferenceAPIsServiceStub
sys.modules |= {"inference_pb2": inference_pb2, "inference_pb2_grpc": inference_pb2_grpc}
kserve.model_server.ModelServer = server
sys.path.insert(0, folder)
sys.argv[1:] = []  # KServe reads the command line, too
runpy.run_path(str(Path(folder, "__main__.py")), run_name="__main__")
