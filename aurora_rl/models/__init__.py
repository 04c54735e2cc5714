"""The omni-modal language model with its segmentation head, and how samples become its inputs."""
