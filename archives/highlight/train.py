"""Train the highlight model on the source of Python's standard library; write highlight.pt and tokenizer.json.

Every token of a source with its class, exactly as Python's own tokenizer and parser say it; whole
modules are held out by the hash of their text. Takes seconds on a CPU; exits 1 if fewer than 93 % of
the spans of held-out modules come out right to the character, with the right class (F1).
"""

from __future__ import annotations

import argparse
import ast
import io
import keyword
import os
import sys
import tokenize
import warnings
from bisect import bisect_left, bisect_right
from itertools import accumulate
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from corpus import modules, parse, share, sources  # noqa: E402

CLASSES = ("KEYWORD", "NAME", "FUNCTION", "CLASS", "PARAMETER", "STRING", "NUMBER", "COMMENT", "OPERATOR")
LABELS = ("O", *(f"{place}-{name}" for name in CLASSES for place in "BI"))
RARE = ("CLASS", "NUMBER", "PARAMETER")
LEFT_OUT = ("encodings", "pydoc_data")  # tables
LEARNED, HELD_OUT = 1_000_000, 150_000  # characters
VOCABULARY = 2000
LENGTH = 96  # pieces of a window
WANTED = 0.93

Span = tuple[int, int, str]  # start, end (characters), class
Window = tuple[list[int], list[int], list[tuple[int, int]]]  # ids, labels, places of pieces


class Highlight(nn.Module):
    """A GRU in both directions: ``(n, length)`` ids and mask -> ``(n, length, 19)`` scores."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width, padding_idx=0)
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.scores = nn.Linear(2 * width, len(LABELS))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # Packed, so that what runs from the end begins with a text's own end and not with padding.
        lengths = mask.sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        states, _ = self.gru(packed)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=ids.size(1))
        scores: torch.Tensor = self.scores(hidden)
        return scores


def corpus(folder: Path | None = None) -> tuple[list[str], list[str]]:
    """Return sources to learn from, and others that are held out."""
    every = sorted(set(sources(*modules(LEFT_OUT, folder), folder=folder)), key=share)
    learned: list[str] = []
    held_out: list[str] = []
    for source in every:
        chosen, most = (held_out, HELD_OUT) if share(source, "held out") < 0.15 else (learned, LEARNED)
        if 200 < len(source) < 60_000 and sum(map(len, chosen)) < most:
            chosen.append(source)
    return learned, held_out


def spans(source: str) -> list[Span]:
    """Return the tokens of a source with their classes, in order; an empty list where it is no Python.

    An f-string is one STRING, whether this version of Python sees inside it or not.
    """
    tree = parse(source)
    if tree is None:
        return []
    lines = io.StringIO(source).readlines()  # not splitlines: form feeds end no line of Python's
    begins = [0, *accumulate(map(len, lines))]
    named = dict(_names(tree, lines))
    found: list[Span] = []
    depth, opened = 0, 0
    before = ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            start, end = (begins[row - 1] + column for row, column in (token.start, token.end))
            kind = tokenize.tok_name[token.type]
            if kind.endswith("STRING_START"):  # from Python 3.12 on
                opened = start if not depth else opened
                depth += 1
            elif kind.endswith("STRING_END"):
                depth -= 1
                if not depth:
                    found.append((opened, end, "STRING"))
            elif depth:
                continue
            elif kind in ("STRING", "NUMBER", "COMMENT"):
                found.append((start, end, kind))
            elif kind == "OP":
                found.append((start, end, "OPERATOR"))
            elif kind == "NAME" and keyword.iskeyword(token.string):
                found.append((start, end, "KEYWORD"))
            elif kind == "NAME":
                definition = {"def": "FUNCTION", "class": "CLASS"}.get(before)
                found.append((start, end, definition or named.get(token.start, "NAME")))
            before = token.string
    except (tokenize.TokenError, SyntaxError, IndexError):
        return []
    return found


def _names(tree: ast.Module, lines: list[str]) -> list[tuple[tuple[int, int], str]]:
    """Return the places (row, column) of the names that are parameters or are called, with their classes."""

    def place(row: int, column: int) -> tuple[int, int]:
        return row, len(lines[row - 1].encode()[:column].decode("utf-8", "replace"))  # ast counts bytes

    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            found.append((place(node.lineno, node.col_offset), "PARAMETER"))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.append((place(node.func.lineno, node.func.col_offset), "FUNCTION"))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            row, column = place(node.func.end_lineno or 1, node.func.end_col_offset or 0)
            found.append(((row, column - len(node.func.attr)), "FUNCTION"))
    return found


def source_pieces(texts: list[str]) -> Tokenizer:
    """Return a tokenizer whose pieces never reach over a token of Python's; the ends of lines are pieces too."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
            pre_tokenizers.Split(Regex(r"\n|[^\W\d]\w*|\d[\w.]*|[^\w\s]"), "isolated"),
        ]
    )
    special = ["[PAD]", "[UNK]", "[MASK]"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, limit_alphabet=300, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def windows(tokenizer: Tokenizer, source: str) -> list[Window]:
    """Return the parts of a source that begin with a statement: ids, labels and places of their pieces."""
    exact = spans(source)
    tree = parse(source)
    if not exact or tree is None:
        return []
    encoding = tokenizer.encode(source)
    ids, places = encoding.ids, encoding.offsets
    labels = _labels(places, exact)
    # Where a statement begins no string is open, which a text has no way of telling.
    begins = [0, *accumulate(map(len, io.StringIO(source)))]
    rows = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)}
    beginnings = sorted({bisect_left(places, (begins[row - 1], 0)) for row in rows})
    found = []
    first = 0
    while first < len(ids):
        last = first + LENGTH
        found.append((ids[first:last], labels[first:last], places[first:last]))
        following = beginnings[bisect_right(beginnings, last) - 1] if beginnings else last
        # A statement longer than half a window, a docstring most often, is cut.
        first = following if following > first + LENGTH // 2 else last
    return found


def _labels(offsets: list[tuple[int, int]], exact: list[Span]) -> list[int]:
    """Return the index of the label of each piece: B- where a span begins, I- inside, O between."""
    starts = [start for start, _, _ in exact]
    labels = []
    for start, end in offsets:
        place = bisect_right(starts, start) - 1
        if place < 0 or end > exact[place][1]:
            labels.append(0)
        else:
            labels.append(LABELS.index(f"{'B' if start == starts[place] else 'I'}-{exact[place][2]}"))
    return labels


def joined(labels: list[int], offsets: list[tuple[int, int]]) -> set[Span]:
    """Return the spans that labels mean."""
    found: list[Span] = []
    for label, (start, end) in zip((LABELS[index] for index in labels), offsets, strict=True):
        place, _, name = label.partition("-")
        if place == "I" and found and found[-1][2] == name:
            found[-1] = (found[-1][0], end, name)
        elif place != "O":
            found.append((start, end, name))
    return set(found)


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    """Return rows of numbers as a tensor, filled up with ``value``."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def train(ids: torch.Tensor, labels: torch.Tensor, epochs: int, seed: int) -> Highlight:
    """Return the model, trained with pieces blotted out so that it looks around them."""
    torch.manual_seed(seed)
    model = Highlight()
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * -(-len(ids) // 16))
    weight = torch.tensor([3.0 if label[2:] in RARE else 1.0 for label in LABELS])
    for _ in range(epochs):
        for rows in torch.randperm(len(ids)).split(16):
            blotted = torch.where((torch.rand(ids[rows].shape) < 0.01) & (ids[rows] > 0), 1, ids[rows])
            scores = model(blotted, (ids[rows] > 0).long())
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), labels[rows].flatten(), weight, ignore_index=-100)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def measured(model: Highlight, unseen: list[Window]) -> float:
    """Return the F1 of the spans of windows that the model has not seen."""
    right = wanted = given = 0
    with torch.inference_mode():
        for one, labels, offsets in unseen:
            ids = torch.tensor([one])
            expected = joined(labels, offsets)
            predicted = joined(model(ids, torch.ones_like(ids))[0].argmax(1).tolist(), offsets)
            right += len(expected & predicted)
            wanted += len(expected)
            given += len(predicted)
    return 2 * right / (wanted + given)


def main() -> int:
    """Train, measure, export."""
    parser = argparse.ArgumentParser(description="Train the highlight model and write its weights and tokenizer.")
    parser.add_argument("--output", type=Path, default=HERE / "highlight.pt")
    parser.add_argument("--tokenizer", type=Path, default=HERE / "tokenizer.json")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # steps this small wait for a second thread longer than it saves

    learned, held_out = corpus()
    if not learned or not held_out:
        print("this Python has no source of its standard library: nothing is trained", file=sys.stderr)
        return 1
    tokenizer = source_pieces(learned)
    seen = [window for source in learned for window in windows(tokenizer, source)]
    unseen = [window for source in held_out for window in windows(tokenizer, source)]
    ids = padded([one for one, _, _ in seen], 0)
    model = train(ids, padded([labels for _, labels, _ in seen], -100), options.epochs, options.seed)
    f1 = measured(model, unseen)
    print(f"{len(learned)} modules learned, {len(held_out)} held out: {f1:.1%} of the spans right (F1)")
    if f1 < WANTED:
        print(f"less than {WANTED:.0%}: {options.output} is not written", file=sys.stderr)
        return 1

    parts = {file: file.with_name(f".{file.name}.part") for file in (options.tokenizer, options.output)}
    tokenizer.save(str(parts[options.tokenizer]), pretty=False)
    with warnings.catch_warnings():
        # torch calls TorchScript deprecated; it is what TorchServe loads without further code.
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(model), parts[options.output])
    for file, part in parts.items():
        os.replace(part, file)
        print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
