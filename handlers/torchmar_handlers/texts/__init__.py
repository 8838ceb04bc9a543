"""The common parts of the handlers of texts.

From a text to an answer, in the order of the modules:

* `encoded`: a text as a model takes it, and where its pieces stand in it;
* `pieces`: texts to subword ids, with the archive's ``tokenizer.json``;
* `bag`: texts to words and pairs of words, with the ``source_vocab.pt`` of TorchServe's own text handler;
* `outputs`: the one tensor that counts of what a model puts out;
* `spans`: labels of pieces to labelled spans of the text;
* `handler`: the base of the three handlers.
"""
