"""Handlers for clients over gRPC."""

from __future__ import annotations

HANDLERS = {
    "many_ways": """
import time
from ts.utils.util import PredictionException
def handle(rows, context):
    return None if rows is None else [answer(row) for row in rows]
def answer(row):
    body = row["body"]
    if isinstance(body, dict):
        outputs = [{**one, "name": "same " + one["name"]} for one in body["inputs"]]
        return {"id": body.get("id", ""), "model_name": "many_ways", "model_version": "1.0", "outputs": outputs}
    text = bytes(body).decode()
    if text == "slow":
        time.sleep(2)
    if text == "fail":
        raise ValueError("by accident")
    if text.isdigit():
        raise PredictionException("on purpose", int(text))
    return {name: bytes(value).decode() for name, value in row.items()}
""",
    "pieces": """
from ts.handler_utils.utils import send_intermediate_predict_response
def handle(rows, context):
    if rows is None:
        return None
    for piece in ("a", "b"):
        parts = [piece] * len(rows)
        send_intermediate_predict_response(parts, context.request_ids, "Intermediate", 200, context)
    return ["c"] * len(rows)
""",
    "counting": """
counts = {}
def handle(rows, context):
    if rows is None:
        return None
    answers = []
    for index, row in enumerate(rows):
        sequence = context.get_request_header(index, "ts_request_sequence_id")
        counts[sequence] = counts.get(sequence, 0) + len(row["body"])
        answers.append(str(counts[sequence]))
    return answers
""",
}
