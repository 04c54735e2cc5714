"""Errors of one attempt, of a question, or of all questions."""

from __future__ import annotations


class BadReplyError(ValueError):
    """One attempt brought no valid reply.

    Attributes:
        reason: word by which failures are counted, such as "timeout" or "cut_off".
        repeatable: whether a retry may succeed.
        wait_s: pause that the endpoint asks for before a retry, in seconds.
    """

    def __init__(self, reason: str, detail: str, *, repeatable: bool = True, wait_s: float | None = None) -> None:
        super().__init__(detail)
        self.reason, self.repeatable, self.wait_s = reason, repeatable, wait_s


class NoAnswerError(Exception):
    """A question stays without an answer.

    Attributes:
        reason: reason of the last attempt.
        attempts: number of requests that were made.
    """

    def __init__(self, reason: str, detail: str, *, attempts: int = 0) -> None:
        super().__init__(detail)
        self.reason, self.attempts = reason, attempts


class EndpointRefusedError(RuntimeError):
    """No question can be answered: the key, the address or the model is wrong, or no money is left."""
