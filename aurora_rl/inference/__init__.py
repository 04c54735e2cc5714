"""Inference: chains of thought and masks for references to a clip, and the videos and files that show them."""
