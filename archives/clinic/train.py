"""Train the clinic model on scikit-learn's bundled breast cancer data; write clinic.pt2 and what its handler reads.

569 fine needle aspirates (Street, Wolberg and Mangasarian, "Nuclear feature extraction for breast tumor diagnosis",
1993), each with 30 measures of the cell nuclei in its image. The model gets twelve of them as numbers: texture,
smoothness, symmetry and fractal dimension. The others, of size and outline, are withheld; four of them are in the text
(`findings`). An exercise of two inputs: no medical device, and not for use on people.

Takes less than 30 s on a CPU; exits 1 if both inputs are right about less than 93 % of the samples that were not
learned, or not 2 points better than each input alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch import nn

from torchmar_handlers.texts.vocabulary import FILE as VOCABULARY
from torchmar_handlers.texts.vocabulary import Vocabulary, cleaned

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]
import findings  # noqa: E402
from model import Clinic  # noqa: E402

PROPERTIES = ("texture", "smoothness", "symmetry", "fractal dimension")
FOLDS = 5
WANTED, MARGIN = 0.93, 0.02


def numbers(names: list[str]) -> list[int]:
    """Return the indices of the measures that the model gets as numbers."""
    return [index for index, name in enumerate(names) if any(text in name for text in PROPERTIES)]


def describe(names: list[str], values: np.ndarray) -> list[dict[str, Any]]:
    """Return the specification of the numbers that the handler reads, made of the samples that are learned.

    No measure is negative, and one beyond twice the largest known is an error of unit, not a sample.
    """

    def short(value: float) -> float:
        return float(f"{value:.6g}")  # digits that are the same on every machine

    return [
        {
            "name": name,
            "min": 0,
            "max": short(2 * column.max()),
            "mean": short(column.mean()),
            "std": short(column.std()),
        }
        for name, column in zip(names, values.T, strict=True)
    ]


def write_vocabulary(texts: list[str], file: Path) -> Vocabulary:
    """Write the words and pairs of words of the texts that are learned; return the vocabulary as the handler has it."""
    words = sorted({" ".join(pair) for text in texts for pair in _pairs(cleaned(text).split())})
    torch.save(words, file)
    return Vocabulary(file, 2)


def _pairs(words: list[str]) -> list[tuple[str, ...]]:
    return [(word,) for word in words] + list(pairwise(words))


def inputs(
    values: np.ndarray, columns: list[dict[str, Any]], texts: list[str], vocabulary: Vocabulary
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return samples as the handler passes them to the model."""
    mean, std = (np.array([column[key] for column in columns]) for key in ("mean", "std"))
    words = torch.zeros(len(texts), len(vocabulary.vocabulary))
    for row, text in enumerate(texts):
        words[row, vocabulary.encode(text).ids] = 1
    return torch.from_numpy((values - mean) / std).float(), words


def train(image_data: torch.Tensor, text_data: torch.Tensor, labels: torch.Tensor, epochs: int, seed: int) -> Clinic:
    """Return the model, trained on all samples at once."""
    torch.manual_seed(seed)
    model = Clinic(image_data.shape[1], text_data.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=5e-2)
    for _ in range(epochs):
        # Smoothed, so that probabilities stay away from 0 and 1, which so few samples do not warrant.
        loss = nn.functional.cross_entropy(model(image_data, text_data), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def predicted(model: Clinic, image_data: torch.Tensor, text_data: torch.Tensor) -> torch.Tensor:
    """Return the probabilities of the classes, ``(n, 2)``."""
    with torch.inference_mode():
        probabilities: torch.Tensor = model(image_data, text_data).softmax(1)
        return probabilities


def compare(names: list[str], data: np.ndarray, labels: torch.Tensor, options: argparse.Namespace) -> dict[str, float]:
    """Return the accuracy of each input alone and of both; every sample is predicted by a model that has not seen it.

    A model of one input is trained and used with the other one empty: average numbers, or no word.
    """
    chosen, right = numbers(names), dict.fromkeys(("numbers alone", "text alone", "both"), 0)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=options.seed)
    for learned, held_out in folds.split(data, labels):
        columns = describe([names[index] for index in chosen], data[learned][:, chosen])
        texts = findings.written(names, data, findings.limits(names, data[learned]))
        vocabulary = write_vocabulary([texts[row] for row in learned], part(options.output.with_name(VOCABULARY)))
        image_data, text_data = inputs(data[:, chosen], columns, texts, vocabulary)
        for name in right:
            both = (
                torch.zeros_like(image_data) if name == "text alone" else image_data,
                torch.zeros_like(text_data) if name == "numbers alone" else text_data,
            )
            image, text = both
            model = train(image[learned], text[learned], labels[learned], options.epochs, options.seed)
            found = predicted(model, image[held_out], text[held_out]).argmax(1)
            right[name] += int((found == labels[held_out]).sum())
    return {name: count / len(labels) for name, count in right.items()}


def part(file: Path) -> Path:
    """Return where a file is written before it replaces the one that is there; torch.export.save wants the suffix."""
    return file.with_name(f".part-{file.name}")


def write_samples(names: list[str], values: np.ndarray, texts: list[str], chosen: dict[str, int]) -> None:
    """Write the request of a sample of each kind."""
    for kind, row in chosen.items():
        body = {
            "image_data": values[row].tolist(),
            "text_data": texts[row],
            "patient_id": f"wdbc-{row}",
            "metadata": {"order": names},
        }
        (HERE / "samples" / f"{kind}.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Train, measure, export."""
    parser = argparse.ArgumentParser(description="Train the clinic model; write its program, columns and vocabulary.")
    parser.add_argument(
        "--output", type=Path, default=HERE / "clinic.pt2", help="the other files are written beside it"
    )
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", action="store_true", help="write the sample requests anew as well")
    options = parser.parse_args()
    torch.set_num_threads(1)  # steps this small wait for a second thread longer than it saves

    bundled = load_breast_cancer()
    names, kinds = bundled.feature_names.tolist(), bundled.target_names.tolist()
    data, labels = bundled.data, torch.from_numpy(bundled.target)
    chosen = numbers(names)
    print(f"{len(data)} samples: {len(chosen)} numbers, {len(findings.GRADES)} findings in words; {FOLDS} folds")
    accuracy = compare(names, data, labels, options)
    for name, value in accuracy.items():
        print(f"  {name:13} {value:.1%} right")
    alone = max(accuracy["numbers alone"], accuracy["text alone"])
    if accuracy["both"] < max(WANTED, alone + MARGIN):
        print(f"less than wanted: {options.output} is not written", file=sys.stderr)
        return 1

    learned, held_out = train_test_split(np.arange(len(data)), test_size=0.25, random_state=0, stratify=labels)
    own = [names[index] for index in chosen]
    columns = describe(own, data[learned][:, chosen])
    texts = findings.written(names, data, findings.limits(names, data[learned]))
    vocabulary_file = options.output.with_name(VOCABULARY)
    vocabulary = write_vocabulary([texts[row] for row in learned], part(vocabulary_file))
    image_data, text_data = inputs(data[:, chosen], columns, texts, vocabulary)
    model = train(image_data[learned], text_data[learned], labels[learned], options.epochs, options.seed)
    probabilities = predicted(model, image_data[held_out], text_data[held_out])
    right = (probabilities.argmax(1) == labels[held_out]).numpy()
    print(f"the model: {len(learned)} samples learned, {len(held_out)} held out: {right.mean():.1%} of those right")
    for index, kind in enumerate(kinds):
        of_kind = (labels[held_out] == index).numpy()
        print(f"  {kind}: {right[of_kind].sum()} of {of_kind.sum()} found")

    if options.samples:
        rows = {}
        for index, kind in enumerate(kinds):
            # The median of the held-out samples of a kind by confidence: neither the easiest nor the hardest.
            by_confidence = [int(row) for row in np.flatnonzero((labels[held_out] == index).numpy())]
            by_confidence.sort(key=lambda row: float(probabilities[row, index]))
            rows[kind] = int(held_out[by_confidence[len(by_confidence) // 2]])
        write_samples(own, data[:, chosen], texts, rows)
    # Two rows, not one: torch.export takes a size of one for a constant.
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model, (image_data[:2], text_data[:2]), dynamic_shapes={"image_data": {0: batch}, "text_data": {0: batch}}
    )
    columns_file = options.output.with_name("columns.json")
    part(columns_file).write_text(json.dumps(columns, indent=2) + "\n", encoding="utf-8")
    torch.export.save(program, part(options.output))
    for file in (vocabulary_file, columns_file, options.output):
        os.replace(part(file), file)
        print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
