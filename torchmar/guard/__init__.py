"""Middleware that sends the requests of a web application to a model and blocks those classified as an attack.

The model is a classifier of texts with the label ``attack``, on a running server. The middleware needs neither torch
nor the extras of torchmar: `AsgiGuard` wraps an ASGI application, `WsgiGuard` a WSGI application, and
``torchmar.guard.django.GuardMiddleware`` is listed in the settings of a Django project.

From a request to its verdict, in the order of the modules:

* `http_request`: the text that the model gets, without secrets;
* `guard`: the request to the model, the time limit, and the verdict;
* `asgi`, `wsgi`, `django`: the middleware.
"""

from torchmar.guard.asgi import AsgiGuard
from torchmar.guard.guard import Guard, Verdict
from torchmar.guard.http_request import as_text
from torchmar.guard.wsgi import WsgiGuard

__all__ = ["AsgiGuard", "Guard", "Verdict", "WsgiGuard", "as_text"]
