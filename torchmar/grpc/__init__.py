"""Clients of TorchServe's services over gRPC; ``pip install 'torchmar[grpc]'``.

The contracts are ``wire/*.proto``; ``scripts/protos`` generates the messages from them.
"""

from __future__ import annotations

from torchmar.grpc.inference import GrpcInference
from torchmar.grpc.management import GrpcManagement
from torchmar.grpc.open_inference import GrpcOpenInference, ModelMetadata, TensorMetadata

__all__ = ["GrpcInference", "GrpcManagement", "GrpcOpenInference", "ModelMetadata", "TensorMetadata"]
