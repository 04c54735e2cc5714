"""Rollouts by vLLM: the model as vLLM loads it, its weights on their way there, and prompts with frames and sound."""
