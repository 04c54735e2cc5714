"""The arguments that recipes read from YAML and the command line, beside the trainers' own."""

from __future__ import annotations

import dataclasses

from aurora_rl.tasks.prompts import DEFAULT_INSTRUCTION


@dataclasses.dataclass
class ModelArguments:
    """The model to train, and how much of it is trained.

    Attributes:
        model: hub name or directory of an MLLM, of a model trained here, or of a LoRA adapter.
        segmenter: config of the mask decoder that a plain MLLM starts with, such as
            `{type: sam, checkpoint: facebook/sam-vit-huge, image_size: 1024}`.
        dtype: dtype of the weights.
        attn_implementation: attention implementation of transformers, such as `sdpa`.
        freeze: names of sub-modules that are not trained, such as `[visual, audio_tower]`.
        use_peft: whether LoRA on the language model (and the modules to save) is trained instead of everything.
        lora_r: rank of LoRA.
        lora_alpha: scale of LoRA.
        lora_dropout: dropout of the adapters.
        lora_modules_to_save: modules that are trained and saved whole beside the adapters.
        load_in_4bit: whether the language model under LoRA is quantised to 4 bits a weight; needs bitsandbytes and a
            GPU.
        memory_limit_gb: device memory that a process may take, in GB of 10^9 bytes; by default all of it. A recipe
            whose estimate (`aurora_rl.footprint`) is above it, or above the process's share of the host's memory,
            stops before it loads anything.
        ignore_memory_estimate: whether the recipe runs even if the estimate is above a limit.
    """

    model: str = dataclasses.field(metadata={"help": "Hub name or directory of the model to start from."})
    segmenter: dict | None = dataclasses.field(default=None, metadata={"help": "Config of a new mask decoder."})
    dtype: str = dataclasses.field(default="auto", metadata={"help": "float32, bfloat16 or auto."})
    attn_implementation: str | None = dataclasses.field(default=None, metadata={"help": "As in transformers."})
    freeze: list[str] = dataclasses.field(default_factory=list, metadata={"help": "Sub-modules not trained."})
    use_peft: bool = dataclasses.field(default=False, metadata={"help": "Train LoRA adapters."})
    lora_r: int = dataclasses.field(default=8, metadata={"help": "LoRA rank."})
    lora_alpha: int = dataclasses.field(default=16, metadata={"help": "LoRA scale."})
    lora_dropout: float = dataclasses.field(default=0.05, metadata={"help": "LoRA dropout."})
    lora_modules_to_save: list[str] = dataclasses.field(
        default_factory=lambda: ["seg_head", "lm_head", "embed_tokens"],
        metadata={"help": "Trained and saved whole beside the adapters."},
    )
    load_in_4bit: bool = dataclasses.field(default=False, metadata={"help": "LoRA on a base of 4 bits a weight."})
    memory_limit_gb: float | None = dataclasses.field(default=None, metadata={"help": "Device memory for a process."})
    ignore_memory_estimate: bool = dataclasses.field(default=False, metadata={"help": "Run whatever is estimated."})


@dataclasses.dataclass
class DataArguments:
    """The benchmark to read, and how a clip is given to the model.

    If neither YAML nor the command line sets `fps`, `num_frames`, `instruction`, `system_prompt`, `min_pixels`,
    `max_pixels` or `use_audio_in_video`, the value is that of the checkpoint's training (`assembly.parser`).

    Attributes:
        data_root: folder of the benchmark, for Ref-AVSBench the one with metadata.csv, media/ and gt_mask/.
        benchmark: name of the benchmark, a key of `assembly.benchmarks.LOADERS`.
        train_split: split to train on.
        eval_split: split for evaluation during training; None for none.
        max_eval_samples: number of rows of the eval split, drawn to cover as many clips as possible; None for all.
        eval_samples_seed: seed of that draw. It is separate from the training's seed, so that runs with different
            seeds are compared on the same rows.
        chains: JSONL with chains of thought, keyed by uid and row; relative to `data_root`.
        reflections: JSONL with chains that went wrong and their corrections, from `data_prep/correct_cot.py`.
        fps: frames a second of the stored frames; for Ref-AVSBench only, as the other benchmarks define it.
        num_frames: number of frames that a clip of Ref-AVSBench must have, None for any number; of OmniAVS, upper limit
            of evenly spaced frames, None for all; AVSBench defines it.
        mask_cache: folder for OmniAVS's masks as PNG files.
        media_cache: folder for the unpacked media of `hf_dataset`.
        instruction: user text with a `{reference}` field.
        system_prompt: optional system message.
        min_pixels: lower limit of a frame's area for the vision tower.
        max_pixels: upper limit of a frame's area for the vision tower.
        use_audio_in_video: whether the sound lies between the frames, chunk by chunk, instead of after them; in your
            own data set each row may choose, by `AVSample.use_audio_in_video`.
        embedding_cache: folder for the frozen image encoder's embeddings; needed to train `sam` and `sam2` decoders.
    """

    data_root: str = dataclasses.field(metadata={"help": "Folder of the benchmark."})
    benchmark: str = dataclasses.field(
        default="ref_avs",
        metadata={"help": "ref_avs, avsbench_s4, avsbench_ms3, avsbench_avss, omni_avs or hf_dataset."},
    )
    train_split: str = dataclasses.field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = dataclasses.field(default=None, metadata={"help": "Split to evaluate on in training."})
    max_eval_samples: int | None = dataclasses.field(
        default=None, metadata={"help": "Rows drawn over the eval split's clips."}
    )
    eval_samples_seed: int = dataclasses.field(default=0, metadata={"help": "Of the draw of max_eval_samples."})
    chains: str | None = dataclasses.field(default=None, metadata={"help": "JSONL with chains of thought."})
    reflections: str | None = dataclasses.field(default=None, metadata={"help": "JSONL with mistakes and corrections."})
    fps: float = dataclasses.field(default=1.0, metadata={"help": "Frames a second of the stored frames."})
    num_frames: int | None = dataclasses.field(default=10, metadata={"help": "Frames a clip must have."})
    mask_cache: str | None = dataclasses.field(default=None, metadata={"help": "Folder for OmniAVS's masks."})
    media_cache: str | None = dataclasses.field(default=None, metadata={"help": "Folder for hf_dataset's media."})
    instruction: str = dataclasses.field(default=DEFAULT_INSTRUCTION, metadata={"help": "With a {reference} field."})
    system_prompt: str | None = dataclasses.field(default=None, metadata={"help": "Optional system message."})
    min_pixels: int | None = dataclasses.field(default=None, metadata={"help": "Lower limit of a frame's area."})
    max_pixels: int | None = dataclasses.field(default=None, metadata={"help": "Upper limit of a frame's area."})
    use_audio_in_video: bool = dataclasses.field(default=False, metadata={"help": "Put sound between the frames."})
    embedding_cache: str | None = dataclasses.field(default=None, metadata={"help": "Folder for SAM embeddings."})


@dataclasses.dataclass
class TargetArguments:
    """Targets of supervised fine-tuning, and the teacher whose features are distilled.

    Attributes:
        target: kind of target, a key of `tasks.targets.TARGETS`: "teacher" (stage 0), "chain" (stage 1), "answer"
            (stage 1 without chains), "reflection" or "reflection_learn_wrong" (stage 2).
        replay_share: share of rows in reflective training that have no mistake and train only their chain.
        teacher: directory or hub name of the distillation's teacher; None for no distillation.
        teacher_features: file for the teacher's features, computed once and bound to this teacher; None keeps the
            teacher in memory and computes them in each step.
        teacher_instruction: instruction for the teacher, if it was trained with another one than the student.
        teacher_batch_size: number of rows in a forward pass of the teacher that computes the file.
    """

    target: str = dataclasses.field(
        default="chain",
        metadata={"help": "teacher, chain, answer, reflection or reflection_learn_wrong."},
    )
    replay_share: float = dataclasses.field(default=0.5, metadata={"help": "Rows without a mistake, a share of all."})
    teacher: str | None = dataclasses.field(default=None, metadata={"help": "Model that features are distilled from."})
    teacher_features: str | None = dataclasses.field(default=None, metadata={"help": "File for its features."})
    teacher_instruction: str | None = dataclasses.field(default=None, metadata={"help": "If not the student's."})
    teacher_batch_size: int = dataclasses.field(default=8, metadata={"help": "While the file is made."})

    def __post_init__(self) -> None:
        if self.teacher is None and self.teacher_features is not None:
            raise ValueError("teacher_features is a file of a teacher's features: say which one by `teacher`")


@dataclasses.dataclass
class RewardArguments:
    """The rewards that the policy is trained on; their weights are TRL's `reward_weights`."""

    reward_funcs: list[str] = dataclasses.field(
        default_factory=lambda: [
            "reward_fns.format:format_reward",
            "reward_fns.mask_iou:mask_iou_reward",
            "reward_fns.category:category_reward",
            "reward_fns.reasoning_consistency:reasoning_consistency_reward",
        ],
        metadata={"help": "'package.module:function' or 'path/to/file.py:function'."},
    )
