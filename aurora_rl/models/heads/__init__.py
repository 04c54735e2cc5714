"""Heads turn the hidden state of a grounding token into a prediction; today, masks."""
