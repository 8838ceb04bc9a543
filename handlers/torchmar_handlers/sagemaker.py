"""The functions of a package for SageMaker's PyTorch toolkit: model_fn, input_fn, predict_fn, output_fn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchmar_handlers.adapters import sagemaker_defaults as defaults
from torchmar_handlers.adapters import sagemaker_functions
from torchmar_handlers.adapters.handler import Adapter, body_of, decoded_by_server, text_of
from torchmar_handlers.common.reply import Reply
from torchmar_handlers.request import JSON, Request


class SageMaker(Adapter):
    """Run a SageMaker package; options in the ``handler`` section of the configuration.

    ============== ===================== ================================================================
    option         default               meaning
    ============== ===================== ================================================================
    program        inference.py          the script with the functions, in ``code/`` or at the top; the
                                         default need not exist
    accept         application/json      the content type of answers for which a request names none
    ============== ===================== ================================================================

    If an option is missing, the variables of the toolkit are read: SAGEMAKER_PROGRAM and
    SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT.

    The archive has the content of ``model.tar.gz``, and its folder is the ``model_dir`` of ``model_fn``. Functions that
    the script does not define are the toolkit's: see `torchmar_handlers.adapters.sagemaker_defaults`. Each gets
    ``context`` as its last argument if it takes one more argument than the toolkit's. ``transform_fn``,
    ``pre_model_fn`` and ``model_warmup_fn`` run as in the toolkit.

    The answer to an exception of these functions has its ``status_code`` and ``message``, if it has both, as those of
    ``sagemaker_inference.errors`` have, or else 500 and its text, as in the toolkit, but without the traceback,
    which is in the log.
    """

    def load_package(self, folder: Path) -> None:
        """Import the script, and run ``model_fn``."""
        self.accept = self.options.text("accept", os.environ.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT") or JSON)
        program = self.options.text("program", os.environ.get("SAGEMAKER_PROGRAM", "")) or None
        self.functions = sagemaker_functions.load(folder, program)
        self._call("pre_model_fn", str(folder), default=None)
        self.model: Any = self._call("model_fn", str(folder), default=lambda: defaults.model_fn(folder, self.device))
        self._call("model_warmup_fn", str(folder), self.model, default=None)

    def answer(self, request: Request) -> Reply:
        """Return the answer of ``transform_fn``, or of the other three functions."""
        script_functions = self.functions.keys() & {"input_fn", "transform_fn"}
        # Only functions of the script need the text of JSON.
        decoded = not script_functions and decoded_by_server(request)
        body: Any = request.row["body"] if decoded else body_of(request)
        content_type = str(request.headers["content-type"]) if request.headers.get("content-type") else None
        accept = str(request.headers.get("accept") or defaults.ANY)
        if accept.strip() == defaults.ANY:
            accept = self.accept
        if request.media_type in defaults.TEXTS and not decoded:
            body = text_of(body)
        if "transform_fn" in self.functions:
            answer = self._call("transform_fn", self.model, body, content_type, accept, default=None)
        else:
            answer = self._transform(body, content_type, accept)
        if isinstance(answer, tuple):
            return Reply(answer[0], str(answer[1]))
        # The toolkit returns the header itself, which may be a list or have wildcards.
        first = accept.partition(",")[0].partition(";")[0].strip()
        return Reply(answer, self.accept if "*" in first else first)

    def body_of_instances(self, instances: Sequence[Any]) -> Any:
        """Return the instances themselves, an array for the default ``input_fn``."""
        return instances

    def status_and_message(self, error: Exception) -> tuple[int, str]:
        """Return the status and message of the toolkit."""
        status, message = getattr(error, "status_code", None), getattr(error, "message", None)
        if isinstance(status, int) and 400 <= status < 600 and isinstance(message, str):
            return status, message
        status, message = super().status_and_message(error)
        if status == 507:
            return status, message
        text = str(error)
        if "TorchScript interpreter" in text:
            text = text.strip().splitlines()[-1]  # a traceback precedes it
        return 500, f"{type(error).__name__}: {text}".removesuffix(": ")

    def _transform(self, body: Any, content_type: str | None, accept: str) -> Any:
        device = self.device
        data = self._call("input_fn", body, content_type, default=lambda: defaults.input_fn(body, content_type, device))
        prediction = self._call(
            "predict_fn", data, self.model, default=lambda: defaults.predict_fn(data, self.model, device)
        )
        return self._call(
            "output_fn", prediction, accept, default=lambda: defaults.output_fn(prediction, accept, self.accept)
        )

    def _call(self, name: str, *arguments: Any, default: Any) -> Any:
        """Return the result of a function of the script, or of ``default`` if the script does not define it."""
        function = self.functions.get(name)
        if function is not None:
            return function(self.context, *arguments)
        return default() if default is not None else None
