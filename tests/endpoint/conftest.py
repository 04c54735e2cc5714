"""The endpoint of `tests.fake_endpoint`, for the room that asks it."""

from tests.fake_endpoint import endpoint

__all__ = ["endpoint"]
