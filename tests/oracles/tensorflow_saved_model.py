"""Compare a server's answers over TensorFlow Serving's gRPC with those of TensorFlow for the same SavedModels."""

import os
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

MODELS = Path(os.environ["MODELS"])
TIMEOUT = 10.0  # seconds

channel = grpc.insecure_channel(os.environ["ADDRESS"])
stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
metadata = [("authorization", f"Bearer {os.environ['TOKEN']}")]
generator = np.random.default_rng(3)

for name in ("digits", "named"):
    served = tf.saved_model.load(str(MODELS / name)).signatures["serving_default"]
    specs = served.structured_input_signature[1]
    # The client of a TensorFlow model reads the names of its inputs and outputs here.
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = name
    request.metadata_field.append("signature_def")
    signatures = get_model_metadata_pb2.SignatureDefMap()
    answer = stub.GetModelMetadata(request, TIMEOUT, metadata=metadata)
    assert answer.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    assert signature.inputs.keys() == specs.keys(), signature
    for key, spec in specs.items():
        assert signature.inputs[key].dtype == spec.dtype.as_datatype_enum, signature
        sizes = [dim.size for dim in signature.inputs[key].tensor_shape.dim]
        assert sizes == [-1 if size is None else size for size in spec.shape], signature
    for rows in (1, 5):
        inputs = {
            key: generator.uniform(0.1, 1, (rows, *spec.shape[1:])).astype("float32") for key, spec in specs.items()
        }
        expected = served(**{key: tf.constant(value) for key, value in inputs.items()})
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        request.model_spec.signature_name = "serving_default"
        for key, value in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
        outputs = stub.Predict(request, TIMEOUT, metadata=metadata).outputs
        assert outputs.keys() == expected.keys(), (name, outputs.keys())
        for key, tensor in expected.items():
            np.testing.assert_allclose(tf.make_ndarray(outputs[key]), tensor.numpy(), rtol=1e-4, atol=1e-5)
            assert outputs[key].dtype == tensor.dtype.as_datatype_enum, (name, key)
print("all as with TensorFlow")
