"""What can go wrong with a question: one attempt, the question, or all questions."""

from __future__ import annotations


class BadReplyError(ValueError):
    """One attempt led to nothing.

    Attributes:
        reason: a word to count by, such as "timeout" or "cut_off".
        repeatable: whether another attempt may do better.
        wait_s: how long the endpoint asks to wait before it, in seconds.
    """

    def __init__(self, reason: str, detail: str, *, repeatable: bool = True, wait_s: float | None = None) -> None:
        super().__init__(detail)
        self.reason, self.repeatable, self.wait_s = reason, repeatable, wait_s


class NoAnswerError(Exception):
    """A question stays without an answer.

    Attributes:
        reason: that of the last attempt.
        attempts: number of requests that were made.
    """

    def __init__(self, reason: str, detail: str, *, attempts: int = 0) -> None:
        super().__init__(detail)
        self.reason, self.attempts = reason, attempts


class EndpointRefusedError(RuntimeError):
    """No question will be answered: the key, the address or the model is wrong, or the money is spent."""
