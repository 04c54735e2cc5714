"""The omni-modal language model with its segmentation head, and the way from samples to its inputs."""
