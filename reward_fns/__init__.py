"""Reward functions of the paper, each a plain TRL callable; README.md shows how to write another."""
