"""The device of a run on CPUs, as checkpoints are read back on it."""

import torch
from transformers import TrainingArguments


class CPUDeviceMixin(TrainingArguments):
    """Put in front of a config: several processes on CPUs can then resume."""

    @property
    def device(self) -> torch.device:
        """As transformers', without the index: `torch.load` knows `cpu`, but not accelerate's `cpu:0`."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device
