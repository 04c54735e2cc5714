"""Rollouts by vLLM: the model that vLLM loads, the weights that it is sent, and prompts with frames and sound."""
