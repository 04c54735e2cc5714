"""SAM 3 and Grounding DINO with SAM 2 as published, at toy width: phrases in, masks of the frames' size out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertTokenizer,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Sam2ImageProcessor,
    Sam2Processor,
    Sam3Config,
    Sam3Model,
    Sam3Processor,
    SwinConfig,
)
from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

from aurora_rl.agents.text_segmenters import GroundedSam2Segmenter, Sam3Segmenter, TextSegmenter
from aurora_rl.data.sample import AVClip

CLIP = AVClip(np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8), None, None)
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def sam3(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a SAM 3 with its detector, for images of 56 pixels."""
    grid = {"image_size": 56, "patch_size": 14, "window_size": 2, "global_attn_indexes": [1], "pretrain_image_size": 56}
    backbone = {"model_type": "sam3_vit_model", "num_hidden_layers": 2, **SMALL, **grid}
    sizes = [[16, 16], [8, 8], [4, 4]]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    text = {"vocab_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 32, "projection_dim": 32, **SMALL}
    text |= {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = Sam3Config(
        vision_config={"backbone_config": backbone, "fpn_hidden_size": 32, "backbone_feature_sizes": sizes},
        text_config=text,
        geometry_encoder_config={"num_layers": 1, **SMALL},
        detr_encoder_config={"num_layers": 1, **SMALL},
        detr_decoder_config={"num_layers": 1, "num_queries": 5, **SMALL},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    folder = tmp_path_factory.mktemp("sam3")
    torch.manual_seed(0)
    Sam3Model(config).save_pretrained(folder)
    tokenizer = CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[])
    Sam3Processor(Sam3ImageProcessor(size={"height": 56, "width": 56}), tokenizer, target_size=56).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a Grounding DINO that knows four words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "the", "drum"]
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    text = {
        "model_type": "bert",
        "vocab_size": 1032,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
    }
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=32, window_size=2, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, out_indices=[2, 3, 4]
        ),
        text_config={**text, "num_attention_heads": 2},
        **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 6, "max_text_len": 16, **heads},
    )
    folder = tmp_path_factory.mktemp("grounding_dino")
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sam2(sam2_checkpoint: str) -> str:
    Sam2Processor(Sam2ImageProcessor(size={"height": 64, "width": 64})).save_pretrained(sam2_checkpoint)
    return sam2_checkpoint


def test_sam_3_takes_the_best_instance_of_each_frame(sam3, monkeypatch):
    segmenter = Sam3Segmenter(sam3)
    seen: list[tuple[Any, list[float]]] = []
    found = segmenter.processor.post_process_instance_segmentation

    def loosely(outputs: Any, threshold: float, target_sizes: list) -> list[dict]:
        of_frame = found(outputs, threshold=0.0, target_sizes=target_sizes)
        seen.append((of_frame[0]["masks"], of_frame[0]["scores"].tolist()))
        return of_frame

    monkeypatch.setattr(segmenter.processor, "post_process_instance_segmentation", loosely)
    masks = segmenter(None, CLIP, "the drum")
    assert masks.masks.shape == (2, 40, 60) and masks.masks.dtype == bool
    assert all(len(scores) == 5 for _, scores in seen)
    best = [instances[int(np.argmax(scores))].numpy().astype(bool) for instances, scores in seen]
    assert (masks.masks == np.stack(best)).all()
    assert masks.score == pytest.approx(max(max(scores) for _, scores in seen))


def test_another_phrase_is_another_question(sam3):
    segmenter = Sam3Segmenter(sam3)
    asked = [segmenter.processor(images=CLIP.frames[0], text=text, return_tensors="pt") for text in ("drum", "bell")]
    with torch.inference_mode():
        first, second = (segmenter.sam(**inputs).pred_logits for inputs in asked)
    assert (first - second).abs().max() > 1e-6


def test_what_is_not_found_has_empty_masks(sam3, grounding_dino, sam2, monkeypatch):
    nothing = Sam3Segmenter(sam3)
    monkeypatch.setattr("aurora_rl.agents.text_segmenters.SAM3_THRESHOLD", 1.1)
    monkeypatch.setattr("aurora_rl.agents.text_segmenters.GROUNDING_THRESHOLD", 1.1)
    for segmenter in (nothing, GroundedSam2Segmenter(f"{grounding_dino},{sam2}")):
        found = segmenter(None, CLIP, "the drum")
        assert found.masks.shape == (2, 40, 60) and not found.masks.any() and found.score == 0.0


def test_grounding_dinos_best_box_prompts_sam_2(grounding_dino, sam2, monkeypatch):
    segmenter = GroundedSam2Segmenter(f"{grounding_dino},{sam2}")
    boxes: list[list[float]] = []
    prepare = segmenter.processor

    def noted(**inputs: Any) -> Any:
        boxes.append(inputs["input_boxes"][0][0])
        return prepare(**inputs)

    noted.post_process_masks = prepare.post_process_masks
    monkeypatch.setattr(segmenter, "processor", noted)
    monkeypatch.setattr("aurora_rl.agents.text_segmenters.GROUNDING_THRESHOLD", 0.0)
    found = segmenter(None, CLIP, "The drum.")
    assert found.masks.shape == (2, 40, 60) and len(boxes) == 2 and 0 < found.score <= 1
    asked = segmenter.finder_processor(images=CLIP.frames[0], text="the drum.", return_tensors="pt")
    with torch.inference_mode():
        (best,) = segmenter.finder_processor.post_process_grounded_object_detection(
            segmenter.finder(**asked), asked["input_ids"], threshold=0.0, target_sizes=[(40, 60)]
        )
    assert boxes[0] == pytest.approx(best["boxes"][best["scores"].argmax()].tolist())


@pytest.mark.parametrize("kind", [Sam3Segmenter, GroundedSam2Segmenter])
def test_a_checkpoint_without_some_weights_is_refused(kind: type[TextSegmenter], sam3, grounding_dino, tmp_path):
    source = Path(sam3 if kind is Sam3Segmenter else grounding_dino)
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(next(name for name in sorted(weights) if "decoder" in name and name.endswith("weight")))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights"):
        kind(str(tmp_path) if kind is Sam3Segmenter else f"{tmp_path},none")


def test_all_instances_of_the_frames_become_tracks(sam3, grounding_dino, sam2, monkeypatch):
    """Random weights find many things, so that thresholds of 0 give as many tracks as there may be, or fewer."""
    monkeypatch.setattr("aurora_rl.agents.text_segmenters.SAM3_THRESHOLD", 0.0)
    monkeypatch.setattr("aurora_rl.agents.text_segmenters.GROUNDING_THRESHOLD", 0.0)
    for segmenter in (Sam3Segmenter(sam3), GroundedSam2Segmenter(f"{grounding_dino},{sam2}")):
        tracks = segmenter.tracks(None, CLIP, "the drum")
        assert 1 <= len(tracks) <= 7
        assert all(track.masks.shape == (2, 40, 60) and track.masks.dtype == bool for track in tracks)
        one = segmenter(None, CLIP, "the drum")
        assert one.score == pytest.approx(max(track.score for track in tracks)) or not one.masks.any()
