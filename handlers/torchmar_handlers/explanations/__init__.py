"""Explanations: the share of each part of an input in an answer, for or against it.

From a request to its answer, in the order of the modules:

* `explain_options`: the options of a request (method, target, steps, baseline), parsed and limited;
* `baseline`: the input that stands for "nothing", made from these options;
* `engine`: ``explain`` for images and tables, a batch of requests in few passes;
* `tokens`: ``explain_tokens`` for text, by way of the embeddings;
* `gradients`, `perturbation`, `grad_cam`, `attention_rollout`: the methods themselves;
* `explanation`: the result, with ``document`` to make JSON of it.

They are computed here, equal to captum's and faster (the tests compare them).

Two rules hold for all methods: a row's values never depend on the other rows of its batch, and
the same request gives the same values each time.
"""

from torchmar_handlers.explanations.engine import explain
from torchmar_handlers.explanations.explain_options import IMAGE_METHODS, METHODS, TOKEN_METHODS, ExplainOptions, read
from torchmar_handlers.explanations.explanation import Explanation, document
from torchmar_handlers.explanations.tokens import bags, explain_tokens

__all__ = [
    "IMAGE_METHODS",
    "METHODS",
    "TOKEN_METHODS",
    "ExplainOptions",
    "Explanation",
    "bags",
    "document",
    "explain",
    "explain_tokens",
    "read",
]
