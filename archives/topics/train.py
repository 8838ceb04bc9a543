"""Train the topics model on Python's own documentation; write topics.safetensors and tokenizer.json.

The paragraphs of docstrings and comments of the standard library's source, each labelled with the
area of the library that it comes from; a fifth of them held out by their hash. Takes seconds on a
CPU; exits 1 if fewer than 80 % of the held-out paragraphs come out right.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from corpus import comments, docstrings, paragraphs, share, sources  # noqa: E402
from model import Topics  # noqa: E402

# Areas that every Python from 3.10 on has and no distribution packs apart, and that speak of different things.
AREAS = {
    "asyncio": ("asyncio", "selectors"),
    "compression": ("bz2", "compression", "gzip", "lzma", "tarfile", "zipfile", "zipimport"),
    "email": ("email", "imaplib", "mailbox", "poplib", "smtplib"),
    "numbers": ("_pydecimal", "_pylong", "decimal", "fractions", "numbers", "random", "statistics"),
    "testing": ("doctest", "unittest"),
    "xml": ("xml",),
}
MOST = 800  # paragraphs of an area
HELD_OUT = 0.2
VOCABULARY = 3000
LONGEST = 256  # word pieces of a text
WANTED = 0.80


def corpus(folder: Path | None = None) -> list[tuple[str, int]]:
    """Return paragraphs and the indices of their areas; what two areas say alike is left out."""
    areas: dict[str, set[int]] = {}
    for index, modules in enumerate(AREAS.values()):
        for source in sources(*modules, folder=folder):
            for text in paragraphs(chain((text for _, text in docstrings(source)), comments(source))):
                areas.setdefault(text, set()).add(index)
    # By hash, so that the same texts stay where an area has more of them than are taken.
    texts = sorted((text for text, found in areas.items() if len(found) == 1), key=share)
    chosen: list[tuple[str, int]] = []
    for index in range(len(AREAS)):
        chosen += [(text, index) for text in texts if areas[text] == {index}][:MOST]
    return chosen


def word_pieces(texts: list[str]) -> Tokenizer:
    """Return a tokenizer of lower-case word pieces, trained on ``texts``.

    Byte pairs with a mark before each word: the library's trainer of WordPiece numbers its pieces
    differently in every run.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Metaspace()])
    special = ["[PAD]", "[UNK]", "[MASK]"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(LONGEST)
    return tokenizer


def tensors(tokenizer: Tokenizer, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids and the mask of texts, ``(n, length)`` each."""
    encodings = tokenizer.encode_batch(texts)
    return torch.tensor([one.ids for one in encodings]), torch.tensor([one.attention_mask for one in encodings])


def train(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, epochs: int, seed: int) -> Topics:
    """Return the model, trained with words blotted out so that no single one decides."""
    torch.manual_seed(seed)
    model = Topics(vocabulary=VOCABULARY, classes=len(AREAS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * -(-len(ids) // 64))
    shares = labels.bincount(minlength=len(AREAS)).float()
    weight = shares.mean() / shares.clamp(min=1)
    for _ in range(epochs):
        for rows in torch.randperm(len(ids)).split(64):
            length = int(mask[rows].sum(1).max())
            kept = mask[rows, :length] * (torch.rand(len(rows), length) > 0.1)
            scores = model(ids[rows, :length], kept)
            loss = nn.functional.cross_entropy(scores, labels[rows], weight, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> int:
    """Train, measure, export."""
    parser = argparse.ArgumentParser(description="Train the topics model and write its weights and tokenizer.")
    parser.add_argument("--output", type=Path, default=HERE / "topics.safetensors")
    parser.add_argument("--tokenizer", type=Path, default=HERE / "tokenizer.json")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # steps this small wait for a second thread longer than it saves

    chosen = corpus()
    learned = [(text, area) for text, area in chosen if share(text, "held out") >= HELD_OUT]
    held_out = [(text, area) for text, area in chosen if share(text, "held out") < HELD_OUT]
    if {area for _, area in held_out} != set(range(len(AREAS))):
        print("this Python has no source of its standard library: nothing is trained", file=sys.stderr)
        return 1
    tokenizer = word_pieces([text for text, _ in learned])
    if tokenizer.get_vocab_size() > VOCABULARY:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} pieces, more than {VOCABULARY}")
    ids, mask = tensors(tokenizer, [text for text, _ in learned])
    model = train(ids, mask, torch.tensor([area for _, area in learned]), options.epochs, options.seed)
    with torch.inference_mode():
        predicted = model(*tensors(tokenizer, [text for text, _ in held_out])).argmax(1)
    labels = torch.tensor([area for _, area in held_out])
    accuracy = (predicted == labels).float().mean().item()
    print(f"{len(learned)} paragraphs learned, {len(held_out)} held out: {accuracy:.1%} of those right")
    for area, name in enumerate(AREAS):
        right = (predicted[labels == area] == area).float().mean().item()
        print(f"  {name:11} {int((labels == area).sum()):4} held out, {right:.1%} right")
    if accuracy < WANTED:
        print(f"less than {WANTED:.0%}: {options.output} is not written", file=sys.stderr)
        return 1

    parts = {file: file.with_name(f".{file.name}.part") for file in (options.tokenizer, options.output)}
    tokenizer.save(str(parts[options.tokenizer]), pretty=False)
    parts[options.output].write_bytes(save(model.state_dict()))
    for file, part in parts.items():
        os.replace(part, file)
        print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
