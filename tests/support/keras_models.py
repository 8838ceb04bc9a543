"""A process that makes small Keras models on torch, with random weights, and their answers.

``python keras_models.py FOLDER`` writes ``NAME.keras`` or ``NAME.h5``, and ``NAME.npz`` with inputs and answers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def make(folder: Path) -> Path:
    """Write the models to a folder, in a separate process; return the folder."""
    # With the same variable as conversions, so that a process that has loaded Keras forks it.
    from torchmar import openmp

    environment = {**openmp.short_wait(os.environ), **os.environ}
    environment |= {
        "KERAS_BACKEND": "torch",
        "KERAS_HOME": str(folder),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONHASHSEED": "0",
    }
    subprocess.run([sys.executable, __file__, folder], check=True, env=environment, capture_output=True)
    return folder


def _main(folder: Path) -> None:
    import keras
    import numpy as np

    layers = keras.layers
    keras.utils.set_random_seed(1)
    generator = np.random.default_rng(1)

    def save(name: str, model: Any, *inputs: Any) -> None:
        for layer in model.layers:
            # Weights as after training: biases and statistics of batches are not zeros and ones.
            layer.set_weights([array + generator.uniform(0.05, 0.3, array.shape) for array in layer.get_weights()])
        model.save(folder / name)
        if inputs:
            output = model.predict(list(inputs) if len(inputs) > 1 else inputs[0], verbose=0)
            outputs = output if isinstance(output, dict) else {"output": output}
            named_inputs = {f"input_{place}": value for place, value in enumerate(inputs)}
            np.savez(folder / f"{name}.npz", **named_inputs, **outputs)

    picture = keras.Input((16, 16, 3), name="picture")
    hidden = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(picture)
    hidden = layers.ReLU(6.0)(layers.BatchNormalization()(hidden))
    hidden = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(hidden))
    other = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(8, 1)(hidden)))
    hidden = layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(layers.Dropout(0.5)(layers.Add()([hidden, other]))))
    pictures = keras.Model(picture, layers.Dense(5, activation="softmax")(layers.BatchNormalization()(hidden)))
    images = generator.integers(0, 256, (2, 16, 16, 3)).astype("float32") / 255  # as from the file of an image
    save("pictures.keras", pictures, images)
    save("pictures.h5", pictures, images)

    ids, numbers = keras.Input((4,), dtype="int32", name="ids"), keras.Input((4,), name="numbers")
    text = layers.LSTM(6)(layers.Embedding(50, 8, mask_zero=True)(ids))
    joined = layers.Concatenate()([text, numbers])
    outputs = {"risk": layers.Dense(1, activation="sigmoid")(joined), "q": layers.Dense(3)(joined)}
    two = keras.Model([ids, numbers], outputs)
    tokens = generator.integers(0, 50, (2, 4)).astype("int32")
    save("two.keras", two, tokens, generator.random((2, 4), dtype="float32"))

    words = keras.Input((9, 8))
    attended = layers.LayerNormalization()(layers.Add()([words, layers.MultiHeadAttention(2, 4)(words, words)]))
    save("attention.keras", keras.Model(words, attended), generator.random((2, 9, 8), dtype="float32"))

    row = keras.Input((4,), name="row")
    save("table.keras", keras.Model(row, layers.Dense(1, activation="sigmoid")(layers.Dense(8, "tanh")(row))),
         generator.random((2, 4), dtype="float32"))  # fmt: skip
    save("per_batch.keras", keras.Model(t := keras.Input((6,), dtype="int32"), keras.ops.bincount(t, minlength=3)))

    function = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x * 2)])
    function.save(folder / "lambda.keras")
    function.save(folder / "lambda.h5")

    @keras.saving.register_keras_serializable("shop")
    class Doubled(layers.Layer):  # type: ignore[misc, name-defined]
        def call(self, x: Any) -> Any:
            return x * 2

    keras.Sequential([keras.Input((4,)), Doubled()]).save(folder / "custom.keras")
    steps = keras.Input((4, 3), batch_size=2)
    keras.Model(steps, layers.LSTM(3, stateful=True)(steps)).save(folder / "stateful.keras")
    pictures.save_weights(folder / "only.weights.h5")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
