from pathlib import Path

import pytest
import torch

from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.encoding import PromptOptions
from aurora_rl.models.loading import load_model


@pytest.fixture(scope="session")
def shown_checkpoint(tiny_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random model that knows how clips are put to it, its masks neither empty nor full; read-only."""
    loaded = load_model(tiny_checkpoint)
    prompt = PromptOptions(instruction="{reference}", min_pixels=256, max_pixels=65536)
    loaded.remember_clips(ClipOptions(prompt=prompt, fps=2.0, num_frames=4))
    with torch.no_grad():
        loaded.model.seg_head.projector[2].bias[-1] += 2.0  # an untrained mask is all background
    folder: Path = tmp_path_factory.mktemp("shown")
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return str(folder)
