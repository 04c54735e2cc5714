"""The name of the CPU device, so that a run of several processes on CPUs can resume from its checkpoints."""

import torch
from transformers import TrainingArguments


class CPUDeviceMixin(TrainingArguments):
    """Mixin of a config, placed before its base class, that lets several processes on CPUs resume."""

    @property
    def device(self) -> torch.device:
        """The device of transformers without a CPU's index: `torch.load` knows `cpu`, but not accelerate's `cpu:0`."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device
