"""Handlers for TorchServe that handle each request of a batch independently.

Archives carry this whole package. It imports no module of torchmar: only the
standard library, torch, NumPy, Pillow and TorchServe's own ``ts``. Each file is one
handler, which extends `torchmar_handlers.base.BaseHandler`:

* images: `image_classifier`, `image_segmenter`, `object_detector`;
* texts: `text_classifier`, `token_classifier`, `text_embedder`;
* tables: `tabular_classifier`, `tabular_regressor`;
* other data: `tensors`, named tensors in and out; `cascade`, two models of one archive in sequence.

A handler of your own needs one import, and overrides the methods that differ::

    from torchmar_handlers.base import BaseHandler

    class Lengths(BaseHandler):
        def decode(self, request):          # one request; raise BadRequest for a 400 of its own
            return torch.tensor(request.json()["values"])

        def postprocess(self, output):      # the model's output for the batch: one answer per request
            return [{"length": value} for value in output.tolist()]
"""
