"""Train the search model on Python's own documentation; write search.onnx and tokenizer.json.

The docstrings of the standard library's source: what a function is called, the first sentence about
it and the rest shall lie close together (InfoNCE: van den Oord, Li and Vinyals, "Representation
Learning with Contrastive Predictive Coding", 2018). A tenth of the functions is held out by the hash of
their names. Takes seconds on a CPU; exits 1 if the first sentences of fewer than 40 % of 200 functions
held out find the rest of their docstring among all 200, of which chance finds 0.5 %.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import warnings
from pathlib import Path

import onnxruntime
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from corpus import docstrings, modules, paragraphs, share, sources  # noqa: E402

LEFT_OUT = ("ctypes", "encodings", "pydoc_data")  # tables and the words of C
HELD_OUT = 0.1
AMONG = 200
VOCABULARY = 4000
WIDTH = 96
LONGEST = 96  # pieces of a text
BATCH = 256
TEMPERATURE = 0.1
WANTED = 0.40


class Sentences(nn.Module):
    """Pieces of words, each with a weight of its own, summed: ``(n, length)`` ids, mask -> ``(n, 96)`` unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.weight = nn.Embedding(VOCABULARY, 1)
        nn.init.normal_(self.embedding.weight, std=0.1)
        nn.init.zeros_(self.weight.weight)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = nn.functional.softplus(self.weight(ids)) * mask[:, :, None]
        return nn.functional.normalize((weights * self.embedding(ids)).sum(1), dim=1)


def documented(folder: Path | None = None) -> list[tuple[str, str, str]]:
    """Return names in plain words, first sentences and the rest of docstrings that have all three."""
    found = {}
    for source in sources(*modules(LEFT_OUT, folder), folder=folder):
        for name, text in docstrings(source):
            prose = " ".join(paragraphs([text], shortest=10, longest=1200))
            first, _, rest = prose.partition(". ")
            words = " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)).lower()
            if words and len(first) >= 15 and len(rest) >= 30:
                found[first, rest] = words
    return sorted((words, first, rest) for (first, rest), words in found.items())


def word_pieces(texts: list[str]) -> Tokenizer:
    """Return a tokenizer of lower-case byte pairs, trained on ``texts``."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["[PAD]", "[UNK]", "[MASK]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(LONGEST)
    return tokenizer


def tensors(tokenizer: Tokenizer, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids and the mask of texts, ``(n, length)`` each."""
    encodings = tokenizer.encode_batch(texts)
    return torch.tensor([one.ids for one in encodings]), torch.tensor([one.attention_mask for one in encodings])


def train(tokenizer: Tokenizer, pairs: list[tuple[str, str]], epochs: int, seed: int) -> Sentences:
    """Return the model, trained to tell the other text of a pair from those of the rest of a batch."""
    torch.manual_seed(seed)
    model = Sentences()
    steps = len(pairs) // BATCH
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=epochs * steps)
    sides = [tensors(tokenizer, list(texts)) for texts in zip(*pairs, strict=True)]
    same = torch.arange(BATCH)
    for _ in range(epochs):
        for rows in torch.randperm(len(pairs)).split(BATCH)[:steps]:
            # Words left out by chance, so that a pair is not known by a single one that it shares.
            one, other = (model(ids, mask * (torch.rand(mask.shape) > 0.15)) for ids, mask in shortest(sides, rows))
            likeness = one @ other.T / TEMPERATURE
            loss = nn.functional.cross_entropy(likeness, same) + nn.functional.cross_entropy(likeness.T, same)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def shortest(sides: list[tuple[torch.Tensor, torch.Tensor]], rows: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Return rows of ids and masks without the padding that all of them have."""
    lengths = [int(mask[rows].sum(1).max()) for _, mask in sides]
    return [(ids[rows, :length], mask[rows, :length]) for (ids, mask), length in zip(sides, lengths, strict=True)]


def found(session: onnxruntime.InferenceSession, tokenizer: Tokenizer, queries: list[str], texts: list[str]) -> float:
    """Return the share of queries whose own text lies closest to them, by the weights as they were written."""
    vectors = []
    for some in (queries, texts):
        ids, mask = tensors(tokenizer, some)
        vectors.append(session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})[0])
    nearest = (vectors[0] @ vectors[1].T).argmax(1)
    return float((nearest == range(len(queries))).mean())


def export(model: Sentences, file: Path) -> None:
    """Write the model as ONNX, for batches of any size and texts of any length."""
    ids = torch.ones(2, 7, dtype=torch.long)
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length")
    shape = {0: rows, 1: length}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (ids, torch.ones_like(ids)),
            str(file),
            input_names=["ids", "mask"],
            output_names=["vectors"],
            dynamic_shapes={"ids": shape, "mask": shape},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def main() -> int:
    """Train, measure, export."""
    parser = argparse.ArgumentParser(description="Train the search model and write its ONNX weights and tokenizer.")
    parser.add_argument("--output", type=Path, default=HERE / "search.onnx")
    parser.add_argument("--tokenizer", type=Path, default=HERE / "tokenizer.json")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # steps this small wait for a second thread longer than it saves

    every = documented()
    learned = [one for one in every if share(one[0], "held out") >= HELD_OUT]
    held_out = sorted((one for one in every if share(one[0], "held out") < HELD_OUT), key=lambda one: share(one[2]))
    held_out = held_out[:AMONG]
    if len(held_out) < AMONG:
        print("this Python has no source of its standard library: nothing is trained", file=sys.stderr)
        return 1
    tokenizer = word_pieces([text for one in learned for text in one])
    pairs = [pair for name, first, rest in learned for pair in ((first, rest), (name, rest), (name, first))]
    model = train(tokenizer, pairs, options.epochs, options.seed)
    parts = {file: file.with_name(f".{file.name}.part") for file in (options.tokenizer, options.output)}
    tokenizer.save(str(parts[options.tokenizer]), pretty=False)
    export(model, parts[options.output])
    session = onnxruntime.InferenceSession(parts[options.output])
    names, firsts, rests = (list(texts) for texts in zip(*held_out, strict=True))
    recall = found(session, tokenizer, firsts, rests)
    print(f"{len(learned)} docstrings learned, {AMONG} held out: {recall:.1%} of the first sentences find their rest")
    print(f"  names find it in {found(session, tokenizer, names, rests):.1%}, chance in {1 / AMONG:.1%}")
    if recall < WANTED:
        print(f"less than {WANTED:.0%}: {options.output} is not written", file=sys.stderr)
        for part in parts.values():
            part.unlink()
        return 1

    for file, part in parts.items():
        os.replace(part, file)
        print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
