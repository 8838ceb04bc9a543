"""The common parts of the handlers of texts.

The modules, in the order of their use from a text to an answer:

* `encoded`: a text as the model's input, and the places of its pieces in it;
* `pieces`: texts to subword ids, with the archive's ``tokenizer.json``;
* `bag`: texts to words and pairs of words, with the ``source_vocab.pt`` of TorchServe's own text handler;
* `outputs`: the main tensor in the output of a model;
* `spans`: labels of pieces to labelled spans of the text;
* `handler`: the base of the three handlers.
"""
