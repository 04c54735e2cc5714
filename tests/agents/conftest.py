"""Rows and an endpoint for the agents."""

from tests.data_prep.conftest import make_rows
from tests.fake_endpoint import endpoint

__all__ = ["endpoint", "make_rows"]
