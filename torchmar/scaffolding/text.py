"""A new archive for a model of texts, with its tokenizer."""

from __future__ import annotations

from pathlib import Path

from torchmar.errors import TorchmarError
from torchmar.recipe import FILE_NAME
from torchmar.scaffolding import weights_recipe
from torchmar.scaffolding.inputs import ModelOutput, Signature
from torchmar.scaffolding.templates import render
from torchmar.scaffolding.weights_recipe import Laid

TOKENIZER = "tokenizer.json"
_SAMPLE = "samples/text.txt"
_VECTOR_NAMES = ("embed", "pooler", "hidden", "vector")
_MANY = 128  # numbers for each token; more numbers are a vector, not the classes of a token


def lay(name: str, weights: Path, signature: Signature, test: str) -> Laid:
    """Return the files of the archive.

    Args:
        name: name of the model.
        weights: file of the model, with ``tokenizer.json`` beside it.
        signature: inputs and outputs of the model.
        test: the path of the test module.

    Raises:
        TorchmarError: there is no tokenizer, or the model does not take ids of tokens.
    """
    declared = [tensor for tensor in signature.inputs if tensor.dtype and not tensor.guessed]
    if any(not tensor.dtype.startswith("int") for tensor in declared):
        described = ", ".join(f"{tensor.name or 'input'}: {tensor.dtype}" for tensor in declared)
        raise TorchmarError(
            f"{weights} takes no ids of tokens ({described})",
            hint=f"torchmar new {name} --kind tensors --from {weights}",
        )
    tokenizer = weights.parent / TOKENIZER
    if not tokenizer.is_file():
        raise TorchmarError(
            f"there is no {TOKENIZER} beside {weights}, which makes the model's ids of a text",
            hint="put it there: save_pretrained of a fast tokenizer of transformers writes it, and Tokenizer.save of "
            "the package tokenizers",
        )
    output = next((candidate for candidate in signature.outputs if candidate.shape), None)
    handler = _handler(output)
    notes: list[str] = []
    more = f"files: {{{TOKENIZER}: {TOKENIZER}}} # makes the model's ids of a text\n"
    if handler == "text_embedder":
        description = "A text to a vector; texts with similar meanings have similar vectors."
    else:
        description = "A text to the probabilities of its classes."
        if handler == "token_classifier":
            description = "A text to labelled spans of it."
        classes = output.shape[-1] if output is not None else 0
        labelled, notes = weights_recipe.labels(weights, classes)
        more += labelled
    notes.insert(0, f"{FILE_NAME}: the handler is {handler}, {_reason(output)}")
    if output is not None and output.probabilities and handler == "text_classifier":
        notes.append(
            f"the output {output.name!r} is probabilities already, and the handler computes them of scores: export "
            "the model without its softmax"
        )
    recipe = weights_recipe.write(
        name=name,
        weights=weights,
        handler=f"torchmar_handlers.{handler}",
        sample=_SAMPLE,
        description=description,
        more=more,
        options="  # handler:\n  #   max_tokens: 256 # tokens of a text that the model sees; the rest is cut off\n",
    )
    files = {
        FILE_NAME: recipe,
        _SAMPLE: b"Put a text here that the model is made for.\n",
        test: render("text_test.py", name=name),
    }
    return Laid(files, {TOKENIZER: tokenizer}, notes)


def _handler(output: ModelOutput | None) -> str:
    if output is None:
        return "text_classifier"
    if any(part in output.name.lower() for part in _VECTOR_NAMES) or output.unit:
        return "text_embedder"
    if len(output.shape) == 1:
        return "text_classifier"
    return "token_classifier" if output.shape[-1] <= _MANY else "text_embedder"


def _reason(output: ModelOutput | None) -> str:
    others = "of text_classifier, token_classifier and text_embedder"
    if output is None:
        return f"a guess {others}"
    size = output.shape[-1]
    of_what = "each token" if len(output.shape) > 1 else "a text"
    return f"since the output {output.name!r} has {size} numbers for {of_what} ({others})"
