"""The kinds of load, arrivals and protocols, by their names in options and reports."""

from __future__ import annotations

from typing import Literal

#: Requests at a rate, requests that follow the previous answer, or requests at the times of a log.
Kind = Literal["open", "closed", "replay"]
Arrivals = Literal["poisson", "constant"]
#: TorchServe's inference API over HTTP and gRPC, and KServe's protocols.
Protocol = Literal["torchserve", "kserve-v1", "kserve-v2", "grpc", "grpc-v2"]
PROTOCOL_TITLES: dict[Protocol, str] = {
    "torchserve": "TorchServe's API over HTTP",
    "kserve-v1": "KServe v1 over HTTP",
    "kserve-v2": "KServe v2 over HTTP",
    "grpc": "TorchServe's API over gRPC",
    "grpc-v2": "KServe v2 over gRPC",
}
