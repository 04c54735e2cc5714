"""What EdgeTAM alone needs: timm, and no hub. Its masks are beside SAM 2's, in `test_sam2.py`."""

import importlib.util

import pytest
from transformers import AutoConfig
from transformers.models.edgetam.configuration_edgetam import EdgeTamVisionConfig

from aurora_rl.models.heads.segmenters import build_frame_encoder, build_segmenter, complete_segmenter_config
from aurora_rl.models.heads.segmenters.edgetam import EdgeTamFrameEncoder, default_backbone_without_hub


@pytest.fixture
def no_hub(monkeypatch) -> None:
    def refuse(*args, **options):
        raise OSError("the hub was asked")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)


def test_a_checkpoint_is_loaded_without_the_hub(edgetam_checkpoint, no_hub):
    with pytest.raises(OSError, match="the hub was asked"):  # control: transformers asks whenever it prints a config
        str(EdgeTamVisionConfig())
    before = EdgeTamVisionConfig.__post_init__
    assert EdgeTamFrameEncoder.load_sam(edgetam_checkpoint, None).config.vision_config.fpn_hidden_size == 128
    assert EdgeTamVisionConfig.__post_init__ is before


def test_the_default_backbone_is_that_of_transformers(no_hub):
    with default_backbone_without_hub():
        backbone = EdgeTamVisionConfig().backbone_config
    assert (backbone.model_type, backbone.architecture) == ("timm_wrapper", "repvit_m1")
    assert backbone.model_args == {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}


def test_without_timm_an_error_says_what_to_install_and_cached_clips_are_still_trained_on(
    edgetam_checkpoint, monkeypatch
):
    config = {"type": "edgetam", "image_size": 64, "checkpoint": edgetam_checkpoint}
    trained = build_segmenter(complete_segmenter_config(config))
    trained.load_pretrained()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else find_spec(name))
    with pytest.raises(ImportError, match=r"made by timm, which is not installed: pip install 'aurora-rl\[edgetam\]'"):
        build_segmenter(complete_segmenter_config(config)).load_pretrained()
    build_segmenter(trained.config).load_state_dict(trained.state_dict())
    assert build_frame_encoder(trained.config).fingerprint == build_frame_encoder(trained.config).fingerprint
