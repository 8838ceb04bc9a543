"""The network of all-MiniLM-L6-v2: a BERT of 6 layers, and the mean of what it makes of a text's tokens.

Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
2020; Devlin et al., "BERT", 2019; Reimers and Gurevych, "Sentence-BERT", 2019.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

WIDTH = 384
LAYERS = 6
HEADS = 12
TOKENS = 512
VOCABULARY = 30522
_EPSILON = 1e-12


class Layer(nn.Module):
    """One layer: attention, then two linear layers; both with a residual and a norm after it."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.attended = nn.Linear(WIDTH, WIDTH)
        self.attended_norm = nn.LayerNorm(WIDTH, _EPSILON)
        self.wide = nn.Linear(WIDTH, 4 * WIDTH)
        self.narrow = nn.Linear(4 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, _EPSILON)

    def forward(self, states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return new states, ``(n, length, 384)``; ``bias`` is added to the weights of attention."""
        heads = self.query_key_value(states).unflatten(2, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        weights = (query @ key.transpose(2, 3) * (WIDTH // HEADS) ** -0.5 + bias).softmax(-1)
        attended = (weights @ value).transpose(1, 2).flatten(2)
        states = self.attended_norm(states + self.attended(attended))
        result: torch.Tensor = self.norm(states + self.narrow(functional.gelu(self.wide(states))))
        return result


class MiniLM(nn.Module):
    """``(n, length)`` ids and mask -> ``(n, 384)`` vectors: the mean of the tokens that the mask has."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(TOKENS, WIDTH)
        self.kind = nn.Parameter(torch.zeros(WIDTH))
        self.norm = nn.LayerNorm(WIDTH, _EPSILON)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask.to(self.kind.dtype)
        bias = ((1 - mask) * torch.finfo(mask.dtype).min)[:, None, None]
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        states = self.norm(self.words(input_ids) + self.places(places) + self.kind)
        for layer in self.layers:
            states = layer(states, bias)
        means: torch.Tensor = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return means


def load(weights: Mapping[str, torch.Tensor]) -> MiniLM:
    """Return the network for inference, with the tensors of the model's ``model.safetensors``.

    Raises:
        KeyError: a tensor is missing.
        RuntimeError: they are the tensors of another network.
    """
    state = {
        "words.weight": weights["embeddings.word_embeddings.weight"],
        "places.weight": weights["embeddings.position_embeddings.weight"],
        "kind": weights["embeddings.token_type_embeddings.weight"][0],  # a text is one segment
    }
    renamed = {
        r"embeddings\.LayerNorm": "norm",
        r"(layer\.\d+)\.attention\.output\.dense": r"\1.attended",
        r"(layer\.\d+)\.attention\.output\.LayerNorm": r"\1.attended_norm",
        r"(layer\.\d+)\.intermediate\.dense": r"\1.wide",
        r"(layer\.\d+)\.output\.dense": r"\1.narrow",
        r"(layer\.\d+)\.output\.LayerNorm": r"\1.norm",
    }
    for name, tensor in weights.items():
        for pattern, new in renamed.items():
            if match := re.fullmatch(rf"(?:encoder\.)?{pattern}\.(weight|bias)", name):
                place = match.expand(new).replace("layer.", "layers.")
                state[f"{place}.{match.groups()[-1]}"] = tensor
    for index in range(LAYERS):
        parts = [f"encoder.layer.{index}.attention.self.{part}" for part in ("query", "key", "value")]
        for kind in ("weight", "bias"):
            state[f"layers.{index}.query_key_value.{kind}"] = torch.cat([weights[f"{part}.{kind}"] for part in parts])
    network = MiniLM()
    network.load_state_dict(state)
    return network.eval()
