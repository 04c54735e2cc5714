"""Common parts of SAM and its successors: a frozen image encoder, and a mask decoder that is trained with one prompt.

Both come from one pretrained checkpoint. The prompt made at `[SEG]` takes the place of point and box embeddings, as the
only sparse prompt; the dense prompt is the checkpoint's "no mask".
"""

from __future__ import annotations

import abc
import copy
import functools
import hashlib
import json
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedModel
from transformers import initialization as init

from aurora_rl.files.fingerprint import fingerprint_values
from aurora_rl.models.checkpoint_files import check_checkpoint_files
from aurora_rl.models.heads.segmenters.base import FrameEncoder, Segmenter, check_frames
from aurora_rl.models.heads.segmenters.memory import decoding_budget, power_of_two_below
from aurora_rl.models.heads.segmenters.sam_shared import MaskDecoder
from aurora_rl.models.sharding import loading_whole

#: Masks at once where memory is scarce. Estimates use this number, because more are decoded only where memory is free.
USUAL_LEAST = 4


class SamFamilySegmenter(Segmenter):
    """A pretrained mask decoder with one sparse prompt; the mask is that of token 0, the single-mask output.

    The IoU head and the hypernetworks of the other mask tokens never reach the loss, so they are left out: DDP fails on
    parameters without gradients. All mask tokens stay, since token 0 attends to them.
    """

    #: The frozen half of the same checkpoint.
    frame_encoder: ClassVar[type[SamFamilyFrameEncoder]]
    #: transformers' mask decoder.
    decoder_class: ClassVar[type[nn.Module]]
    #: Parts of the checkpoint's config that determine shapes here.
    config_parts: ClassVar[tuple[str, ...]] = ("mask_decoder_config",)
    #: Memory to decode a mask, in image embeddings of a frame, rounded up. Measured for SAM and SAM 2 at S = 1024 in
    #: float32: 23.3 with gradients, 98 MB a mask, as the sum of the tensors that live at the same time; 7 to 10.7
    #: without, as growth of the process.
    copies_with_gradients: ClassVar[int] = 24
    copies_without_gradients: ClassVar[int] = 11

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        decoder_config = self.frame_encoder.read_part(config, "mask_decoder_config")
        decoder_config._attn_implementation = "sdpa"
        self.prompt_dim = decoder_config.hidden_size
        self.frame_shape = self.frame_encoder(config).frame_shape
        self.mask_decoder = self.single_mask(self.decoder_class(decoder_config))
        self.image_positional_embeddings: Tensor
        # The embeddings themselves, not their frequencies, which would not survive a cast to bfloat16.
        self.register_buffer("image_positional_embeddings", torch.empty(1, self.prompt_dim, *self.frame_shape[1:]))
        self.no_mask_embed: Tensor
        self.register_buffer("no_mask_embed", torch.empty(1, self.prompt_dim, 1, 1))
        self._reset_buffers()

    def masks_that_fit(self, device: torch.device) -> int:
        """Return a power of two that fits into the device's memory; `USUAL_LEAST` on the meta device."""
        if device.type == "meta":
            return USUAL_LEAST
        copies = self.copies_with_gradients if torch.is_grad_enabled() else self.copies_without_gradients
        embedding = self.image_positional_embeddings.numel() * next(self.parameters()).dtype.itemsize
        return power_of_two_below(decoding_budget(device) / (copies * embedding))

    @classmethod
    def complete_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Complete the config by the shapes of the checkpoint that it names, unless it states them."""
        if "checkpoint" not in config or "sam_config" in config:
            return config
        sam_config = cls.frame_encoder.load_config(config["checkpoint"], config.get("revision"))
        return {**config, "sam_config": cls._differences_from_default(sam_config)}

    @classmethod
    def from_checkpoint(cls, checkpoint: str, image_size: int | None = None, *, revision: str | None = None) -> Self:
        """Load the pretrained decoder of a checkpoint; its config is complete.

        Args:
            checkpoint: name on the Hugging Face hub, such as `facebook/sam-vit-huge`, or a folder.
            image_size: S in pixels, by default the checkpoint's own.
            revision: branch, tag or commit on the hub.

        Raises:
            ValueError: if the checkpoint is not whole.
        """
        sam = cls.frame_encoder.load_sam(checkpoint, revision)
        segmenter = cls(
            {
                "type": cls.frame_encoder.kind,
                "image_size": image_size or cls.frame_encoder.native_image_size(sam.config),
                "checkpoint": checkpoint,
                "revision": revision,
                "sam_config": cls._differences_from_default(sam.config),
            }
        )
        segmenter._copy_weights(sam)
        return segmenter

    def load_pretrained(self) -> None:
        """Load the weights of the checkpoint that the config names.

        The hash of its image encoder is noted in `config`: masks learned with one encoder's embeddings are worthless
        with another's, and with the hash an embedding cache can be read without loading the encoder.

        Raises:
            ValueError: if the checkpoint is not whole, or not of the shape that the config describes.
        """
        self._copy_weights(self.frame_encoder.load_sam(self.config["checkpoint"], self.config.get("revision")))

    @staticmethod
    def single_mask(decoder: MaskDecoder) -> MaskDecoder:
        """Remove, in place, the modules that only IoU scores and masks 1 to 3 need."""
        decoder.num_mask_tokens = 1
        decoder.output_hypernetworks_mlps = decoder.output_hypernetworks_mlps[:1]
        decoder.iou_prediction_head = nn.Identity()
        return decoder

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._reset_buffers()

    @torch.no_grad()
    def _copy_weights(self, sam: PreTrainedModel) -> None:
        part = "mask_decoder_config"
        own = self._differences_of_part(self.frame_encoder.read_part(self.config, part), part)
        theirs = self._differences_of_part(getattr(sam.config, part), part)
        if theirs != own:
            raise ValueError(
                f"the mask decoder of checkpoint {self.config['checkpoint']!r} is {theirs}, not {own}: "
                f"set 'sam_config' to {type(self).__name__}.from_checkpoint(...).config's"
            )
        self.config["encoder_hash"] = hash_weights(self.frame_encoder.frozen_part(sam))
        self.mask_decoder.load_state_dict(self.single_mask(sam.mask_decoder).state_dict())
        frequencies = sam.shared_image_embedding.positional_embedding
        self.image_positional_embeddings.copy_(_positional_embeddings(frequencies, self.frame_shape[-1]))
        self.no_mask_embed.copy_(sam.prompt_encoder.no_mask_embed.weight[..., None, None])

    @torch.no_grad()
    def _reset_buffers(self) -> None:
        # transformers' initialisers skip tensors that a checkpoint has filled already.
        frequencies = torch.randn(2, self.prompt_dim // 2, device=self.image_positional_embeddings.device)
        init.copy_(self.image_positional_embeddings, _positional_embeddings(frequencies, self.frame_shape[-1]))
        init.zeros_(self.no_mask_embed)

    @classmethod
    def _differences_from_default(cls, sam_config: PretrainedConfig) -> dict[str, Any]:
        """Return the parts' own fields that differ from their defaults, as plain JSON."""
        return {part: cls._differences_of_part(getattr(sam_config, part), part) for part in cls.config_parts}

    @classmethod
    def _differences_of_part(cls, part_config: PretrainedConfig, part: str) -> dict[str, Any]:
        defaults = cls.frame_encoder.config_class.sub_configs[part]().to_dict()
        values = part_config.to_dict().items()
        differences = {k: v for k, v in values if k in defaults and v != defaults[k] and k != "dtype"}
        plain: dict[str, Any] = json.loads(json.dumps(differences))
        return plain


class SamFamilyFrameEncoder(FrameEncoder):
    """A pretrained image encoder, loaded at the first frame: a run whose clips are cached never loads it.

    Its `config` is the segmenter's.
    """

    cacheable = True
    #: transformers' whole model, which holds both halves.
    sam_class: ClassVar[type[PreTrainedModel]]
    config_class: ClassVar[type[PretrainedConfig]]

    @classmethod
    def read_part(cls, config: dict[str, Any], part: str) -> PretrainedConfig:
        """Build a part of the checkpoint's config from the fields in the segmenter's config."""
        fields = copy.deepcopy(config.get("sam_config", {}).get(part, {}))  # the class changes its arguments
        return cls.config_class.sub_configs[part](**fields)

    @classmethod
    def load_config(
        cls, checkpoint: str, revision: str | None, *, config_class: type[PretrainedConfig] | None = None
    ) -> PretrainedConfig:
        """Read the whole config of a checkpoint, by default as that of its image model."""
        check_checkpoint_files(checkpoint)
        return (config_class or cls.config_class).from_pretrained(checkpoint, revision=revision or "main")

    @classmethod
    @abc.abstractmethod
    def native_image_size(cls, sam_config: PretrainedConfig) -> int:
        """Return S in pixels that the checkpoint was trained with."""

    @staticmethod
    @abc.abstractmethod
    def frozen_part(sam: PreTrainedModel) -> nn.Module:
        """Return the part of the whole model that turns pixels into frame inputs."""

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """Turn frames (F, H, W, 3) uint8 into pixel values (F, 3, S, S) float32."""
        inputs = self._image_processor(images=list(frames), input_data_format="channels_last", return_tensors="pt")
        return inputs["pixel_values"]

    @property
    def normalisation(self) -> list[Any]:
        """The mean and standard deviation of `preprocess`."""
        return [self._image_processor.image_mean, self._image_processor.image_std]

    @functools.cached_property
    @abc.abstractmethod
    def _image_processor(self) -> BaseImageProcessor:
        """The processor of transformers for images of S x S."""

    @abc.abstractmethod
    def _at_image_size(self, encoder: nn.Module) -> nn.Module:
        """Adapt the frozen part to images of S x S."""

    @abc.abstractmethod
    def _encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """Encode (1, 3, S, S) into (1, *frame_shape)."""

    @functools.cached_property
    def fingerprint(self) -> str:
        # The hash covers the checkpoint's own weights: interpolated positional embeddings may differ in the last bit
        # from one machine to another.
        weights = self.config.get("encoder_hash") or hash_weights(self._load_native_encoder())
        parts = [self.kind, self.image_size, str(self.dtype), weights, self.normalisation]
        return fingerprint_values(parts)

    @functools.cached_property
    def vision_encoder(self) -> nn.Module:
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
        encoder = self._at_image_size(encoder)
        return encoder.to(self.device, self.dtype).eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> Self:
        if "vision_encoder" in self.__dict__:  # it is loaded when it is needed
            self.vision_encoder.to(device)
        return super().to(device)

    @torch.no_grad()
    def encode(self, frames: np.ndarray) -> Tensor:
        check_frames(frames)
        pixel_values = self.preprocess(frames).to(self.device, self.dtype)
        # Frame by frame: the attention bias of one frame takes gigabytes at SAM's S = 1024, and so a frame's embedding
        # does not depend on the other frames, not even in its last bit.
        return torch.cat([self._encode_pixels(frame) for frame in pixel_values.split(1)])

    @classmethod
    def load_sam(
        cls,
        checkpoint: str,
        revision: str | None,
        *,
        sam_class: type[PreTrainedModel] | None = None,
        config: PretrainedConfig | None = None,
    ) -> PreTrainedModel:
        """Load the whole model in float32, from safetensors only: a pickled checkpoint could run code.

        Args:
            checkpoint: name on the hub, or a folder.
            revision: branch, tag or commit on the hub.
            sam_class: class of the model, by default the image model's.
            config: config of the model, by default the checkpoint's own.

        Raises:
            ValueError: if weights are missing.
        """
        config = config or cls.load_config(checkpoint, revision)
        return load_whole(sam_class or cls.sam_class, checkpoint, revision=revision, config=config)

    def _load_native_encoder(self) -> nn.Module:
        return self.frozen_part(self.load_sam(self.config["checkpoint"], self.config.get("revision")))


def load_whole(model_class: type[PreTrainedModel], checkpoint: str, **options: Any) -> PreTrainedModel:
    """Load a pretrained model in float32, from safetensors only.

    Raises:
        ValueError: if weights are missing or of other shapes, or a file of the checkpoint is no plain file.
    """
    check_checkpoint_files(checkpoint)
    with loading_whole():
        model, loading = model_class.from_pretrained(
            checkpoint,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by their names
            **options,
        )
    absent = sorted([*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])])
    if absent:
        raise ValueError(
            f"checkpoint {checkpoint!r} is no whole {model_class.__name__}, it lacks for example {absent[0]}: "
            "give another"
        )
    return model


def hash_weights(module: nn.Module) -> str:
    """Hash a module's parameters and buffers by SHA-256: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _positional_embeddings(frequencies: Tensor, grid: int) -> Tensor:
    """Compute random Fourier features of the grid's cell centres: (1, C, grid, grid) of frequencies (2, C/2)."""
    centres = (torch.arange(grid, device=frequencies.device) + 0.5) / grid
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    angles = 2 * torch.pi * ((2 * torch.stack([x, y], dim=-1) - 1) @ frequencies)  # (grid, grid, C/2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1)[None]
