"""Chains of thought by a stronger model: what it is asked, how its replies are checked, and a run over many rows."""
