"""TorchServe's services over gRPC; ``pip install 'torchmar[grpc]'``.

The contract lies in ``wire/*.proto``. After a change there, generate the rest of that folder again::

    pip install 'grpcio-tools==1.62.3' 'setuptools<80'
    python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. torchmar/grpc/wire/*.proto

with that version and in an environment of its own: what it writes runs on every protobuf since
4.25, while what newer ones write runs on none that is older than they are.
"""

from __future__ import annotations

from torchmar.grpc.inference import GrpcInference
from torchmar.grpc.management import GrpcManagement
from torchmar.grpc.open_inference import GrpcOpenInference, ModelMetadata, TensorMetadata

__all__ = ["GrpcInference", "GrpcManagement", "GrpcOpenInference", "ModelMetadata", "TensorMetadata"]
