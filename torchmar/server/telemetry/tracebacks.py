"""The recognition of log lines that belong to one traceback."""

from __future__ import annotations

TRACEBACK = "Traceback (most recent call last)"
DIED = "Backend worker process died"
_CHAINS = ("During handling of the above exception", "The above exception was the direct cause")
_AT_ONCE = 0.02  # largest time between two lines of one message, in seconds


def continues(before: str, line: str, seconds: float) -> bool:
    """Return whether a text is a traceback that continues with a line.

    Args:
        before: the text so far.
        line: next line of the same process.
        seconds: time between the two.
    """
    if not before.startswith(TRACEBACK):
        return False
    last = before.rsplit("\n", 1)[-1]
    if line.startswith(TRACEBACK):
        return last == ""  # a chained traceback follows an empty line
    if not line or line.startswith((" ", "\t", *_CHAINS)) or last.startswith((" ", "\t")):
        return True
    # The message of an exception, such as CUDA's, may have several lines: only the time shows that the next entry
    # begins.
    return seconds < _AT_ONCE and not line.startswith(DIED)
