"""Images: from the bytes of a request to exactly the pixels that a model takes.

The steps of TorchServe's own handlers with Pillow and torchvision, in little more than half of the time:

* `torchmar_handlers.images.reading`: bytes to pixels, within limits;
* `torchmar_handlers.images.jpeg`: the same for JPEG, by libjpeg-turbo if ``simplejpeg`` is installed;
* `torchmar_handlers.images.geometry`: the short side resized, the centre cropped, as torchvision does;
* `torchmar_handlers.images.arrays`: pixels and model inputs that are sent as numbers;
* `torchmar_handlers.images.inputs`: all of these, by the options of a handler.
"""
