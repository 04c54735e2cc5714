"""Parts that vLLM and its weight transfer need on a machine without a GPU."""
