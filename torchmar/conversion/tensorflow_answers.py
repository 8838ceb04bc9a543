"""A process with TensorFlow, or LiteRT, that computes answers: ``python tensorflow_answers.py MODEL INPUTS ANSWERS``.

``INPUTS`` and ``ANSWERS`` are ``.npz`` files of arrays ``NUMBER/NAME``. The last line of the output is the version;
with exit code 1, it is the reason why there are no answers. The file is run directly, and does not import torchmar.
"""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def main(model: Path, inputs: Path, answers: Path) -> int:
    """Answer every input, and write the answers."""
    # As in keras_alone, which this process cannot import: it has TensorFlow's packages, which import Keras.
    for name in ("matplotlib", "sklearn"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    batches: dict[str, Arrays] = defaultdict(dict)
    with np.load(inputs) as file:
        for key in file.files:
            number, _, name = key.partition("/")
            batches[number][name] = file[key]
    try:
        version, results = (_saved_model if model.is_dir() else _lite)(model, batches)
    except ImportError as error:
        print(f"{error.name} is not installed")
        return 1
    except Exception as error:  # any exception of TensorFlow
        print(f"TensorFlow cannot run it here: {' '.join(str(error).split())[:160]}")
        return 1
    arrays: Any = {f"{number}/{name}": value for number, outputs in results.items() for name, value in outputs.items()}
    np.savez(answers, **arrays)
    print(version)
    return 0


def _saved_model(model: Path, batches: dict[str, Arrays]) -> tuple[str, dict[str, Arrays]]:
    tensorflow = importlib.import_module("tensorflow")
    signatures = tensorflow.saved_model.load(str(model)).signatures
    names = next(iter(batches.values())).keys()
    fitting = [
        signature for signature in signatures.values() if signature.structured_input_signature[1].keys() == names
    ]
    function = signatures.get("serving_default") or (fitting[0] if fitting else None)
    if function is None:
        raise ValueError(f"it has no signature with the inputs {', '.join(names)}")
    return f"TensorFlow {tensorflow.__version__}", {
        number: {
            name: value.numpy()
            for name, value in function(**{key: tensorflow.constant(array) for key, array in inputs.items()}).items()
        }
        for number, inputs in batches.items()
    }


def _lite(model: Path, batches: dict[str, Arrays]) -> tuple[str, dict[str, Arrays]]:
    try:
        package = importlib.import_module("ai_edge_litert.interpreter")
        version = "LiteRT"
    except ImportError:
        tensorflow = importlib.import_module("tensorflow")
        package, version = tensorflow.lite, f"TensorFlow Lite {tensorflow.__version__}"
    outputs = {}
    for number, inputs in batches.items():
        interpreter: Any = package.Interpreter(str(model))
        signatures = interpreter.get_signature_list()
        key = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
        if key is None:
            raise ValueError("it has no signature")
        runner = interpreter.get_signature_runner(key)
        outputs[number] = dict(runner(**inputs))
    return version, outputs


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
