"""Explanations: the share of each part of an input in an answer, for or against it.

The modules, in the order of their use from a request to its answer:

* `explain_options`: the options of a request (method, target, steps, baseline), parsed and limited;
* `baseline`: the input that represents "nothing", made from these options;
* `engine`: ``explain`` for images and tables, for a batch of requests in few passes;
* `tokens`: ``explain_tokens`` for text, through the embeddings;
* `gradients`, `perturbation`, `grad_cam`, `attention_rollout`: the methods themselves;
* `explanation`: the result, with ``document`` for its JSON.

The results equal captum's, and are computed faster (tests compare them).

Two rules apply to all methods: the values of a row never depend on the other rows of its batch, and
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
