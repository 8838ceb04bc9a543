"""Train small models with TensorFlow on scikit-learn's digits, and save them with TensorFlow's answers.

    python tests/oracles/tensorflow_models.py DIGITS_CSV_GZ [FOLDER]

The environment is that of ``tensorflow.txt``; the data are ``sklearn/datasets/data/digits.csv.gz``. The results are
committed (`tests/support/tensorflow_models`), so that tests need no TensorFlow:

================== =================================================================================================
``digits``         a SavedModel, exported by Keras: an image (8, 8, 1), channels last, to ten probabilities
``named``          a SavedModel with two signatures: ``serving_default`` of the inputs ``image`` and ``temperature``,
                   with the outputs ``scores`` and ``digit``; ``probabilities`` with one of each
``digits.tflite``  the first as a TensorFlow Lite model; ``digits_int8.tflite``: quantised, of bytes
``examples``       a SavedModel of strings with tf.Example messages, which OpenVINO cannot read
``answers.npz``    ``images`` that no model has seen, ``labels``, and the answers of each model
================== =================================================================================================
"""

import os
import shutil
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

HELD_OUT = 12  # images that answers are saved of


def main(csv: Path, folder: Path) -> None:
    """Train, convert, and write the files."""
    tf.keras.utils.set_random_seed(1)
    rows = np.loadtxt(csv, delimiter=",", dtype=np.float32)
    images, labels = (rows[:, :-1] / 16).reshape(-1, 8, 8, 1), rows[:, -1].astype(np.int64)
    train, held = slice(None, -HELD_OUT), slice(-HELD_OUT, None)
    layers = tf.keras.layers
    net = tf.keras.Sequential(
        [
            tf.keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(6, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    net.compile(tf.keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    net.fit(images[train], labels[train], epochs=8, batch_size=64, verbose=0)
    print("accuracy on held-out images:", net.evaluate(images[held], labels[held], verbose=0)[1])
    for name in ("digits", "named", "examples"):
        shutil.rmtree(folder / name, ignore_errors=True)
    net.export(folder / "digits", verbose=False)
    tf.saved_model.save(named := Named(net), folder / "named", signatures=named.signatures())
    tf.saved_model.save(examples := Examples(net), folder / "examples", signatures=examples.serve)
    converter = tf.lite.TFLiteConverter.from_keras_model(net)
    (folder / "digits.tflite").write_bytes(converter.convert())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in images[:200])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.uint8
    (folder / "digits_int8.tflite").write_bytes(converter.convert())
    for model in folder.glob("*/"):
        for extra in ("assets", "fingerprint.pb"):
            shutil.rmtree(model / extra, ignore_errors=True)
            (model / extra).unlink(missing_ok=True)
    pixels = images[held]
    temperature = np.linspace(0.5, 2, HELD_OUT, dtype=np.float32)[:, None]
    served = tf.saved_model.load(str(folder / "named")).signatures["serving_default"]
    answer = served(image=tf.constant(pixels), temperature=tf.constant(temperature))
    exported = tf.saved_model.load(str(folder / "digits")).signatures["serving_default"]
    quantised = np.round(pixels * 255).astype(np.uint8)
    np.savez_compressed(
        folder / "answers.npz",
        images=pixels,
        temperature=temperature,
        labels=labels[held],
        digits=next(iter(exported(tf.constant(pixels)).values())).numpy(),
        scores=answer["scores"].numpy(),
        digit=answer["digit"].numpy(),
        lite=np.concatenate([lite(folder / "digits.tflite", one[None]) for one in pixels]),
        bytes=quantised,
        int8=np.concatenate([lite(folder / "digits_int8.tflite", one[None]) for one in quantised]),
    )


def lite(file: Path, image: np.ndarray) -> np.ndarray:
    """Return the answer of TensorFlow Lite's interpreter."""
    interpreter = tf.lite.Interpreter(str(file))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


class Net(tf.Module):
    """The layers of a trained net in TensorFlow's own operations, without what Keras saves for training."""

    def __init__(self, net) -> None:
        super().__init__()
        kernel, *statistics, weight, bias = net.get_weights()
        self.kernel, self.weight, self.bias = tf.Variable(kernel), tf.Variable(weight), tf.Variable(bias)
        self.statistics = [tf.Variable(one) for one in statistics]

    def scores(self, image):
        scale, offset, mean, variance = self.statistics
        hidden = tf.nn.conv2d(image, self.kernel, 1, "SAME")
        hidden = tf.nn.relu(tf.nn.batch_normalization(hidden, mean, variance, offset, scale, 1e-3))
        hidden = tf.reshape(tf.nn.max_pool2d(hidden, 2, 2, "VALID"), [-1, self.weight.shape[0]])
        return hidden @ self.weight + self.bias


class Named(Net):
    """A model with names of its own, as people write for TensorFlow Serving."""

    @tf.function
    def serve(self, image, temperature):
        scores = self.scores(image) / temperature
        return {"scores": scores, "digit": tf.argmax(scores, axis=1)}

    @tf.function
    def probabilities(self, image):
        return {"probabilities": tf.nn.softmax(self.scores(image))}

    def signatures(self):
        image = tf.TensorSpec([None, 8, 8, 1], tf.float32, "image")
        temperature = tf.TensorSpec([None, 1], tf.float32, "temperature")
        return {
            "serving_default": self.serve.get_concrete_function(image, temperature),
            "probabilities": self.probabilities.get_concrete_function(image),
        }


class Examples(Net):
    """A model of tf.Example messages in strings."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
    def serve(self, examples):
        spec = {"image": tf.io.FixedLenFeature([8, 8, 1], tf.float32)}
        return {"scores": self.scores(tf.io.parse_example(examples, spec)["image"])}


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2] if len(sys.argv) > 2 else Path(__file__).parents[1] / "support/tensorflow_models"),
    )
