"""Call a server as programs do that use tensorflow-serving-api; the last line of the output is the result."""

import base64
import json
import os
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

ARCHIVES = Path(os.environ["ARCHIVES"])
PNG = (ARCHIVES / "digits" / "samples" / "seven.png").read_bytes()
ROWS = np.array([[5.0, 3.4, 1.5, 0.2], [6.6, 3.0, 5.6, 2.1]], np.float32)
TIMEOUT = 5.0  # seconds

channel = grpc.insecure_channel(os.environ["ADDRESS"])
prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
models = model_service_pb2_grpc.ModelServiceStub(channel)
metadata = [("authorization", f"Bearer {os.environ['TOKEN']}")]


def predict(model, version=None, label=None, signature="serving_default", outputs=(), **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    request.output_filter.extend(outputs)
    for name, value in inputs.items():
        tensor = value if isinstance(value, tensor_pb2.TensorProto) else tf.make_tensor_proto(value)
        request.inputs[name].CopyFrom(tensor)
    return prediction.Predict(request, TIMEOUT, metadata=metadata)


def error_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError("the call succeeded")


# Images as strings.
answer = predict("digits", image=tf.make_tensor_proto(PNG, shape=[1]))
assert answer.outputs["label"].string_val == [b"7"], answer
assert answer.outputs["probability"].double_val[0] > 0.9, answer
assert answer.model_spec.version.value == 1
# In base64, as clients of models send that decode it.
answer = predict("digits", image=[base64.urlsafe_b64encode(PNG)])
assert answer.outputs["label"].string_val == [b"7"], answer

# Numbers.
answer = predict("iris", version=1, measurements=ROWS)
rows = tf.make_ndarray(answer.outputs["probabilities"])
assert rows.shape == (2, 3), rows
assert rows.argmax(1).tolist() == [0, 2], rows
assert list(answer.outputs["probabilities"].float_val) == rows.ravel().tolist()
# The last element of a list of values stands for those that are missing.
short = tf.make_tensor_proto(np.zeros((2, 4), np.float32))
short.ClearField("tensor_content")
short.float_val.append(1.5)
full = predict("iris", measurements=np.full((2, 4), 1.5, np.float32))
assert predict("iris", measurements=short).outputs == full.outputs

# Images as arrays of pixels, channels last.
names = {2: "two", 7: "seven", 9: "nine"}
files = [ARCHIVES / "vit" / "samples" / f"{name}.png" for name in names.values()]
images = np.stack([tf.io.decode_png(file.read_bytes(), channels=3).numpy() for file in files])
for pixels in (images, images.astype(np.float32), images / np.float32(255)):
    answer = predict("vit", image=pixels)
    assert tf.make_ndarray(answer.outputs["probabilities"]).argmax(1).tolist() == list(names), answer

# Signatures.
request = get_model_metadata_pb2.GetModelMetadataRequest()
request.model_spec.name = "iris"
request.metadata_field.append("signature_def")
document = prediction.GetModelMetadata(request, TIMEOUT, metadata=metadata)
signatures = get_model_metadata_pb2.SignatureDefMap()
assert document.metadata["signature_def"].Unpack(signatures)
signature = signatures.signature_def["serving_default"]
assert signature.method_name == "tensorflow/serving/predict"
assert signature.inputs["measurements"].dtype == tf.float32.as_datatype_enum
assert [dim.size for dim in signature.inputs["measurements"].tensor_shape.dim] == [-1, 4]
assert signature.outputs["probabilities"].dtype == tf.float32.as_datatype_enum

# Examples.
classify = classification_pb2.ClassificationRequest()
classify.model_spec.name = "tumours"
columns = json.loads((ARCHIVES / "tumours" / "samples" / "benign.json").read_bytes())
example = classify.input.example_list.examples.add()
for name, value in columns.items():
    example.features.feature[name].float_list.value.append(value)
result = prediction.Classify(classify, TIMEOUT, metadata=metadata).result.classifications[0]
assert result.classes[0].label == "benign", result
assert result.classes[0].score > 0.5, result
regress = regression_pb2.RegressionRequest()
regress.model_spec.name = "diabetes"
columns = json.loads((ARCHIVES / "diabetes" / "samples" / "low.json").read_bytes())
for name, value in columns.items():
    regress.input.example_list_with_context.context.features.feature[name].float_list.value.append(value)
regress.input.example_list_with_context.examples.add()
regress.input.example_list_with_context.examples.add()
values = prediction.Regress(regress, TIMEOUT, metadata=metadata).result.regressions
assert len(values) == 2, values
assert values[0].value == values[1].value > 0
both = inference_pb2.MultiInferenceRequest()
both.tasks.add(method_name="tensorflow/serving/classify").model_spec.name = "tumours"
both.input.CopyFrom(classify.input)
assert (
    prediction.MultiInference(both, TIMEOUT, metadata=metadata).results[0].classification_result.classifications[0]
    == result
)

# States.
status = get_model_status_pb2.GetModelStatusRequest()
status.model_spec.name = "iris"
(state,) = models.GetModelStatus(status, TIMEOUT, metadata=metadata).model_version_status
assert (state.version, state.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE), state

# Errors.
code, details = error_of(lambda: predict("nothing", x=ROWS))
assert code == "NOT_FOUND", (code, details)
code, details = error_of(lambda: predict("iris", version=7, measurements=ROWS))
assert code == "NOT_FOUND", (code, details)
code, details = error_of(lambda: predict("iris", label="canary", measurements=ROWS))
assert code == "NOT_FOUND", (code, details)
code, details = error_of(lambda: predict("iris", signature="classify_it", measurements=ROWS))
assert code == "INVALID_ARGUMENT", (code, details)
assert "classify_it" in details
code, details = error_of(lambda: predict("iris", measurements=ROWS[:, :3]))
assert code == "INVALID_ARGUMENT", (code, details)
print(details)
code, details = error_of(lambda: predict("iris", measures=ROWS))
assert code == "INVALID_ARGUMENT", (code, details)
print(details)
code, details = error_of(lambda: predict("iris", measurements=np.float32(1)))
assert code == "INVALID_ARGUMENT", (code, details)
print(details)
code, details = error_of(lambda: predict("iris", outputs=["scores"], measurements=ROWS))
assert code == "INVALID_ARGUMENT", (code, details)
print(details)
print("all as with TensorFlow Serving")
