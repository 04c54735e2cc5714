"""Segment Anything (Kirillov et al., 2023): its image encoder frozen, its mask decoder trained.

The prompt made at `[SEG]` stands where SAM puts its point and box embeddings, as the only sparse prompt; the dense
prompt is SAM's "no mask". Image sizes other than the checkpoint's are reached by interpolating the encoder's
positional embeddings when it is loaded.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamConfig, SamImageProcessor, SamModel
from transformers import initialization as init
from transformers.models.sam.modeling_sam import SamMaskDecoder, SamVisionEncoder

from aurora_rl.models.segmenters.base import FrameEncoder, Segmenter, check_frames, resize_masks
from aurora_rl.models.segmenters.sam_shared import decode_prompts
from aurora_rl.models.sharding import loading_whole


class SamSegmenter(Segmenter):
    """SAM's mask decoder under one sparse prompt; the mask is that of token 0, SAM's single-mask output.

    The IoU head and the hypernetworks of the other mask tokens never reach the loss, so they are left out: DDP trips
    over parameters without gradients. All mask tokens stay, since token 0 attends to them.

    Args:
        config: `{"type": "sam", "image_size": 1024, "checkpoint": "facebook/sam-vit-huge"}` is enough for a
            published SAM, whose decoders are all alike: C = 256. Optional are `revision` (branch, tag or commit on
            the hub), `sam_config` (what differs from `SamConfig`'s defaults) and `encoder_hash` (of the image
            encoder's weights; `load_pretrained` adds it). The image size S is a multiple of the patch size; mask
            logits are S/4 x S/4.

    Raises:
        ValueError: if S is not a multiple of the patch size.
    """

    #: At S = 1024 the activations of four masks take some 0.4 GB, and larger tensors are slower on a CPU.
    max_masks_per_chunk = 4

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        sam_config = SamConfig(**config.get("sam_config", {}))
        decoder_config = sam_config.mask_decoder_config
        decoder_config._attn_implementation = "sdpa"
        grid = _grid_size(config["image_size"], sam_config.vision_config.patch_size)
        self.prompt_dim = decoder_config.hidden_size
        self.frame_shape = (self.prompt_dim, grid, grid)
        self.mask_decoder = _single_mask(SamMaskDecoder(decoder_config))
        self.image_positional_embeddings: Tensor
        # The embeddings themselves, not the frequencies they come from: those do not survive a cast to bfloat16.
        self.register_buffer("image_positional_embeddings", torch.empty(1, *self.frame_shape))
        self.no_mask_embed: Tensor
        self.register_buffer("no_mask_embed", torch.empty(1, self.prompt_dim, 1, 1))
        self._reset_buffers()

    @classmethod
    def complete_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The config with the shapes of the SAM that it names as `checkpoint`, unless it states them."""
        if "checkpoint" not in config or "sam_config" in config:
            return config
        sam_config = SamConfig.from_pretrained(config["checkpoint"], revision=config.get("revision") or "main")
        return {**config, "sam_config": _differences_from_default(sam_config)}

    @classmethod
    def from_checkpoint(
        cls, checkpoint: str, image_size: int | None = None, *, revision: str | None = None
    ) -> SamSegmenter:
        """Pretrained decoder of any SAM, its config complete.

        Args:
            checkpoint: name on the Hugging Face hub, such as `facebook/sam-vit-huge`, or a folder.
            image_size: S in pixels, by default the checkpoint's own.
            revision: branch, tag or commit on the hub.

        Raises:
            ValueError: if the checkpoint is not a whole SAM.
        """
        sam = _load_sam(checkpoint, revision)
        segmenter = cls(
            {
                "type": "sam",
                "image_size": image_size or sam.config.vision_config.image_size,
                "checkpoint": checkpoint,
                "revision": revision,
                "sam_config": _differences_from_default(sam.config),
            }
        )
        segmenter._copy_weights(sam)
        return segmenter

    def load_pretrained(self) -> None:
        """Take over the weights of the checkpoint that the config names.

        The hash of its image encoder is noted in `config`: masks learned on one encoder's embeddings are worthless on
        another's, and with the hash an embedding cache can be read without loading the encoder.

        Raises:
            ValueError: if the checkpoint is not a whole SAM, or not of the shape that the config describes.
        """
        self._copy_weights(_load_sam(self.config["checkpoint"], self.config.get("revision")))

    @torch.no_grad()
    def _copy_weights(self, sam: SamModel) -> None:
        config = _differences_from_default(SamConfig(**self.config.get("sam_config", {})))
        theirs = _differences_from_default(sam.config)
        if theirs["mask_decoder_config"] != config["mask_decoder_config"]:
            raise ValueError(
                f"the mask decoder of checkpoint {self.config['checkpoint']!r} is {theirs['mask_decoder_config']}, not "
                f"{config['mask_decoder_config']}: set 'sam_config' to SamSegmenter.from_checkpoint(...).config's"
            )
        self.mask_decoder.load_state_dict(_single_mask(sam.mask_decoder).state_dict())
        frequencies = sam.shared_image_embedding.positional_embedding
        self.image_positional_embeddings.copy_(_positional_embeddings(frequencies, self.frame_shape[-1]))
        self.no_mask_embed.copy_(sam.prompt_encoder.no_mask_embed.weight[..., None, None])
        self.config["encoder_hash"] = hash_weights(sam.vision_encoder)

    def decode(self, frame_inputs: Tensor, prompts: Tensor) -> Tensor:
        """SAM's mask decoder over N image embeddings with G prompts each."""
        image_embeddings = frame_inputs + self.no_mask_embed
        return decode_prompts(self.mask_decoder, image_embeddings, self.image_positional_embeddings, prompts)

    def postprocess(self, mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Enlarge to S x S, cut the padding off, resize to the frame: `SamImageProcessor.post_process_masks`."""
        image_size = self.config["image_size"]
        mask_logits = resize_masks(mask_logits.float(), (image_size, image_size))
        height, width = resized_frame_size(size, image_size)
        return resize_masks(mask_logits[..., :height, :width], size)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._reset_buffers()

    @torch.no_grad()
    def _reset_buffers(self) -> None:
        # transformers' initialisers spare what a checkpoint has filled already.
        frequencies = torch.randn(2, self.prompt_dim // 2, device=self.image_positional_embeddings.device)
        init.copy_(self.image_positional_embeddings, _positional_embeddings(frequencies, self.frame_shape[-1]))
        init.zeros_(self.no_mask_embed)


class SamFrameEncoder(FrameEncoder):
    """SAM's image encoder, loaded when the first frame is encoded: a run that finds all clips cached never loads it.

    Frames are resized to a longest edge of S, normalised and padded at the bottom and right to S x S.
    """

    kind = "sam"
    cacheable = True

    @functools.cached_property
    def frame_shape(self) -> tuple[int, ...]:
        vision_config = SamConfig(**self.config.get("sam_config", {})).vision_config
        grid = _grid_size(self.image_size, vision_config.patch_size)
        return (vision_config.output_channels, grid, grid)

    @functools.cached_property
    def fingerprint(self) -> str:
        # Of the checkpoint's own weights, before positional embeddings are interpolated: those may differ in the last
        # bit from one machine to the next.
        weights = self.config.get("encoder_hash") or hash_weights(self._load_native_encoder())
        normalisation = [self._image_processor.image_mean, self._image_processor.image_std]
        parts = [self.kind, self.image_size, str(self.dtype), weights, normalisation]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @functools.cached_property
    def vision_encoder(self) -> SamVisionEncoder:
        """The frozen module at image size S.

        Raises:
            ValueError: if the checkpoint's weights are not those that the segmenter was made for.
        """
        encoder = self._load_native_encoder()
        weights = hash_weights(encoder)
        expected = self.config.get("encoder_hash", weights)
        if weights != expected:
            raise ValueError(
                f"the image encoder of checkpoint {self.config['checkpoint']!r} is not the one that this segmenter was "
                f"made for (hash of its weights {weights[:12]}, expected {expected[:12]}): restore that checkpoint"
            )
        encoder = resize_vision_encoder(encoder, self.image_size)
        return encoder.to(self.device, self.dtype).eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> Self:
        if "vision_encoder" in self.__dict__:  # not before it is needed
            self.vision_encoder.to(device)
        return super().to(device)

    @torch.no_grad()
    def encode(self, frames: np.ndarray) -> Tensor:
        check_frames(frames)
        pixel_values = self.preprocess(frames).to(self.device, self.dtype)
        # Frame by frame: the attention bias of one frame alone takes gigabytes at S = 1024, and a frame's embedding
        # does not depend on the frames beside it, not even in its last bit.
        return torch.cat([self.vision_encoder(frame).last_hidden_state for frame in pixel_values.split(1)])

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """Pixel values (F, 3, S, S) float32 of frames (F, H, W, 3) uint8."""
        inputs = self._image_processor(images=list(frames), input_data_format="channels_last", return_tensors="pt")
        return inputs["pixel_values"]

    @functools.cached_property
    def _image_processor(self) -> SamImageProcessor:
        square = {"height": self.image_size, "width": self.image_size}
        return SamImageProcessor(size={"longest_edge": self.image_size}, pad_size=square)

    def _load_native_encoder(self) -> SamVisionEncoder:
        return _load_sam(self.config["checkpoint"], self.config.get("revision")).vision_encoder


def resize_vision_encoder(encoder: SamVisionEncoder, image_size: int) -> SamVisionEncoder:
    """SAM's image encoder for another image size.

    Absolute positional embeddings are interpolated bicubically, relative ones of the layers with global attention
    linearly. Layers with windowed attention keep theirs: a window holds as many patches as before.

    Args:
        encoder: an image encoder; returned as it is where the size is its own.
        image_size: S in pixels, a multiple of the patch size.

    Raises:
        ValueError: if S is not a multiple of the patch size.
    """
    if image_size == encoder.config.image_size:
        return encoder
    config = copy.deepcopy(encoder.config)
    config.image_size = image_size
    grid = _grid_size(image_size, config.patch_size)
    weights = encoder.state_dict()
    if "pos_embed" in weights:
        weights["pos_embed"] = _resize_absolute_positions(weights["pos_embed"], grid)
    for layer in config.global_attn_indexes if config.use_rel_pos else ():
        for axis in ("h", "w"):
            name = f"layers.{layer}.attn.rel_pos_{axis}"
            weights[name] = _resize_relative_positions(weights[name], grid)
    with torch.device("meta"):
        resized = SamVisionEncoder(config)
    resized.load_state_dict(weights, assign=True)
    return resized


def resized_frame_size(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """(H, W) in pixels of a frame brought to a longest edge of `image_size`, before padding."""
    scale = image_size / max(size)
    height, width = (int(side * scale + 0.5) for side in size)
    return height, width


def hash_weights(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_sam(checkpoint: str, revision: str | None) -> SamModel:
    """The whole of SAM in float32, from safetensors only: a pickled checkpoint could run code."""
    with loading_whole():
        sam, loading = SamModel.from_pretrained(
            checkpoint,
            revision=revision,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    absent = sorted([*loading["missing_keys"], *loading["mismatched_keys"]])
    if absent:
        raise ValueError(
            f"checkpoint {checkpoint!r} is not a whole SAM, it lacks for example {absent[0]}: give another"
        )
    return sam


def _differences_from_default(config: SamConfig) -> dict[str, Any]:
    """The parts' own fields that are not at their default, plain JSON."""
    differences: dict[str, Any] = {}
    for part in ("vision_config", "mask_decoder_config"):
        values, defaults = getattr(config, part).to_dict(), SamConfig.sub_configs[part]().to_dict()
        differences[part] = {k: v for k, v in values.items() if k in defaults and v != defaults[k] and k != "dtype"}
    return json.loads(json.dumps(differences))


def _single_mask(decoder: SamMaskDecoder) -> SamMaskDecoder:
    """Take out, in place, what only IoU scores and masks 1 to 3 need."""
    decoder.num_mask_tokens = 1
    decoder.output_hypernetworks_mlps = decoder.output_hypernetworks_mlps[:1]
    decoder.iou_prediction_head = nn.Identity()
    return decoder


def _grid_size(image_size: int, patch_size: int) -> int:
    if image_size % patch_size:
        raise ValueError(f"image_size {image_size} must be a multiple of SAM's patch size {patch_size}")
    return image_size // patch_size


def _positional_embeddings(frequencies: Tensor, grid: int) -> Tensor:
    """Random Fourier features of the grid's cell centres: (1, C, grid, grid) of frequencies (2, C/2)."""
    centres = (torch.arange(grid, device=frequencies.device) + 0.5) / grid
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    angles = 2 * torch.pi * ((2 * torch.stack([x, y], dim=-1) - 1) @ frequencies)  # (grid, grid, C/2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1)[None]


def _resize_absolute_positions(pos_embed: Tensor, grid: int) -> Tensor:
    """(1, h, w, D) -> (1, grid, grid, D)."""
    channels_first = pos_embed.permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, size=(grid, grid), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).contiguous()


def _resize_relative_positions(rel_pos: Tensor, grid: int) -> Tensor:
    """(2 h - 1, head_dim) -> (2 grid - 1, head_dim); the middle row stays the offset 0."""
    resized = F.interpolate(rel_pos.T[None], size=2 * grid - 1, mode="linear", align_corners=False)
    return resized[0].T.contiguous()
