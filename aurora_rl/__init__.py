"""Aurora-RL: RL post-training of omni-modal LLMs for audio-visual grounding."""

__version__ = "0.1.0"
