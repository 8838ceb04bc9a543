"""Send the same requests to two engines and compare the responses.

* `torchmar.parity.cases`: the requests;
* `torchmar.parity.engine_client`: a client that does not change requests or responses;
* `torchmar.parity.responses`: comparison of two responses;
* `torchmar.parity.differences`: the documented differences, each with its reason;
* `torchmar.parity.comparing`: the whole comparison.
"""

from __future__ import annotations

from torchmar.parity.comparing import EnginePair, Outcome, compare, engine_pair
from torchmar.parity.differences import documented
from torchmar.parity.known_difference import KnownDifference

__all__ = ["EnginePair", "KnownDifference", "Outcome", "compare", "documented", "engine_pair"]
