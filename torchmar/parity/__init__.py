"""Send the same requests to two engines and compare the responses.

* `torchmar.parity.cases`: what is asked;
* `torchmar.parity.engine_client`: who is asked, byte for byte;
* `torchmar.parity.responses`: responses, and their comparison;
* `torchmar.parity.differences`: the differences that are meant, each with its reason;
* `torchmar.parity.comparing`: all of it.
"""

from __future__ import annotations

from torchmar.parity.comparing import EnginePair, Outcome, compare, engine_pair
from torchmar.parity.differences import KnownDifference, documented

__all__ = ["EnginePair", "KnownDifference", "Outcome", "compare", "documented", "engine_pair"]
