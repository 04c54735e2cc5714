"""The arguments that recipes read from YAML and the command line, beside the trainers' own."""

from __future__ import annotations

import dataclasses
from typing import Any

from aurora_rl.tasks.base import load_task

#: The task of the recipes, unless they name another one.
REFERENCE_SEGMENTATION = "aurora_rl.tasks.reference_segmentation:ReferenceSegmentation"


@dataclasses.dataclass
class ModelArguments:
    """The model to train, and how much of it is trained.

    Attributes:
        model: hub name or directory of an MLLM, of a model trained here, or of a LoRA adapter.
        family: family of the model, where no family here reads it: a class derived from `models.mllm.MLLMFamily`, as
            'package.module:Name' or 'path/to/file.py:Name'. A checkpoint never names one, since its code runs.
        segmenter: config of the mask decoder that a plain MLLM starts with, such as
            `{type: sam, checkpoint: facebook/sam-vit-huge, image_size: 1024}`.
        heads: configs of other heads that the model starts with, by name, for example
            `{boxes: {type: dot, image_size: 64, width: 32}}`; see `models.heads`. `state_layer` in a head's config is
            the decoder's layer whose states it reads (`models.state_layer`).
        dtype: dtype of the weights.
        attn_implementation: attention kernel, by its name in transformers.
        freeze: names of sub-modules that are not trained; `towers` stands for all that see and hear.
        tower_cache: folder that keeps what frozen towers compute for a clip, for this run and later ones; None to run
            them.
        use_peft: whether LoRA on the language model (and the modules to save) is trained instead of everything.
        lora_r: rank of the LoRA matrices.
        lora_alpha: numerator of LoRA's scale, which is `lora_alpha / lora_r`.
        lora_dropout: dropout of the adapters.
        lora_modules_to_save: modules that are trained and saved whole beside the adapters.
        load_in_4bit: whether the language model has 4 bits a weight beneath LoRA; needs bitsandbytes and a GPU.
        memory_limit_gb: memory of its device that a process may take, in GB of 10^9 bytes, by default all there is. A
            recipe whose estimate (`aurora_rl.footprint`) is above it, or above the process's share of the host's
            memory, stops before it loads anything.
        ignore_memory_estimate: whether a recipe runs although the estimate is above a limit.
    """

    model: str = dataclasses.field(
        metadata={"help": "Model to start from: hub name or folder of an MLLM, a trained model or a LoRA adapter."}
    )
    family: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Family of the model from outside: 'package.module:Name' or 'path/to/file.py:Name'."},
    )
    segmenter: dict | None = dataclasses.field(
        default=None, metadata={"help": "Config of the mask decoder that a plain MLLM starts with."}
    )
    heads: dict | None = dataclasses.field(
        default=None, metadata={"help": "Configs of other heads that the model starts with, by name, such as boxes."}
    )
    dtype: str = dataclasses.field(
        default="auto", metadata={"help": "Number format of the weights: float32, bfloat16 or auto."}
    )
    attn_implementation: str | None = dataclasses.field(
        default=None, metadata={"help": "Attention kernel, one that transformers knows, such as sdpa."}
    )
    freeze: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": "Names of sub-modules that are not trained; towers for all that see and hear."},
    )
    tower_cache: str | None = dataclasses.field(
        default=None, metadata={"help": "Folder that keeps the outputs of frozen towers for each clip."}
    )
    use_peft: bool = dataclasses.field(
        default=False, metadata={"help": "Train LoRA on the language model instead of all weights."}
    )
    lora_r: int = dataclasses.field(default=8, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = dataclasses.field(
        default=16, metadata={"help": "Numerator of LoRA's scale, which is lora_alpha / lora_r."}
    )
    lora_dropout: float = dataclasses.field(default=0.05, metadata={"help": "Dropout probability of the LoRA layers."})
    lora_modules_to_save: list[str] = dataclasses.field(
        default_factory=lambda: ["seg_head", "lm_head", "embed_tokens"],
        metadata={"help": "Modules that are trained and saved whole beside LoRA."},
    )
    load_in_4bit: bool = dataclasses.field(
        default=False, metadata={"help": "Quantise the language model beneath LoRA to 4 bits a weight."}
    )
    memory_limit_gb: float | None = dataclasses.field(
        default=None, metadata={"help": "Memory of its device that a process may take, in GB of 10^9 bytes."}
    )
    ignore_memory_estimate: bool = dataclasses.field(
        default=False, metadata={"help": "Run even where the estimated memory is above a limit."}
    )

    def to_record(self) -> dict[str, Any]:
        """Return the arguments as files record them that a run resumes.

        A family that is not named is left out, so that records of earlier versions are equal, and the cache of the
        towers, which changes no result.
        """
        fields = dataclasses.asdict(self).items()
        return {k: v for k, v in fields if k != "tower_cache" and (k != "family" or v is not None)}


@dataclasses.dataclass
class DataArguments:
    """The benchmark to read, and how a clip is given to the model.

    If neither YAML nor the command line sets `fps`, `num_frames`, `instruction`, `system_prompt`, `min_pixels`,
    `max_pixels`, `use_audio_in_video` or `drop_sound`, the value is that of the checkpoint's training
    (`assembly.parser`).

    Attributes:
        data: several data sets instead of one, a list of mappings with the options that follow and `name`, `share` and
            others of `assembly.data_sets.ENTRY_KEYS`; what an entry leaves out has the value given here.
        data_root: folder of the benchmark, for Ref-AVSBench the one with metadata.csv, media/ and gt_mask/; for own
            clips the manifest or its folder, or a data set of `datasets`: a folder or Parquet file, or a hub name.
        benchmark: name of the benchmark, a key of `assembly.benchmarks.LOADERS`, or a loader of one's own as
            `package.module:load` or `path/to/mine.py:load` (`assembly.own_loader`).
        train_split: split to train on.
        eval_split: split for evaluation during training; None for none.
        max_eval_samples: number of rows drawn from the eval split to cover as many clips as they can; None for all.
        eval_samples_seed: seed of that draw. It is not the training's seed, so that runs with several of those are
            compared on the same rows.
        chains: JSONL with chains of thought, keyed by uid and row; relative to `data_root`.
        reflections: JSONL with chains that went wrong and their corrections, from `data_prep/correct_cot.py`.
        pass_rates: JSONL with how often a model was right about each row of the training split, from
            `data_prep/pass_rates.py`; rows at or beyond the two limits are left out.
        pass_rate_above: share of right tries that a row must exceed; negative to keep rows without any.
        pass_rate_below: share of right tries that a row must stay under; above 1 to keep rows without a wrong one.
        curriculum: order of the rows by their pass rates, a key of `data.curriculum.ORDERS`; GRPO alone keeps it, with
            `shuffle_dataset: false`. None for no order.
        curriculum_bands: number of equal parts of that order within which rows are shuffled; None for a strict order.
        curriculum_seed: seed of that shuffling, and of the order of rows with equal rates.
        fps: frames a second of Ref-AVSBench's stored frames, and those that are sampled of own videos; the other
            benchmarks fix or tell it.
        num_frames: number of frames that a clip of Ref-AVSBench must have, None for any; largest number of evenly
            spaced frames that are taken from a clip of OmniAVS or an own clip, None for all; AVSBench fixes it.
        columns: own manifest's names of columns by the names that `data.manifest_rows` knows, for example
            `{reference: caption}`.
        skip_unlabelled: whether rows without true masks are left out; otherwise they are an error where masks are
            trained or own clips are scored.
        mask_cache: folder for masks as PNG files, of OmniAVS and of own clips; None for the usual folder of own clips.
        frame_cache: folder for decoded frames of own videos; None to decode a video whenever its clip is read.
        media_cache: folder for the unpacked media of `hf_dataset`, which needs it, and of own clips in tables, which
            otherwise go to the usual cache.
        task: what is asked about a clip and how it is judged, a class derived from `tasks.base.Task`, as
            `package.module:Name` or `path/to/mine.py:Name`.
        instruction: user text with a `{reference}` field; None for the task's own.
        system_prompt: optional system message.
        min_pixels: lower limit of a frame's area for the vision tower.
        max_pixels: upper limit of a frame's area for the vision tower.
        use_audio_in_video: whether the sound is interleaved with the frames, in chunks, instead of after them; in your
            own data set each row may choose, by `AVSample.use_audio_in_video`.
        drop_sound: whether the model is given no sound. A model without ears needs it where clips have sound, which is
            an error otherwise; its exported card says so.
        embedding_cache: folder for the frozen image encoder's embeddings; needed to train all mask decoders but `dot`.
    """

    data_root: str = dataclasses.field(
        default="", metadata={"help": "Folder that holds the benchmark, or the manifest of clips."}
    )
    benchmark: str = dataclasses.field(
        default="ref_avs",
        metadata={
            "help": "Name of the benchmark: ref_avs, avsbench_s4, avsbench_ms3, avsbench_avss, omni_avs, omni_avs_all, "
            "hf_dataset, questions, avqa_r1, avqa, mmau, mmar, mmsu or clips; or a loader of your own as "
            "'path/to/mine.py:load'."
        },
    )
    train_split: str = dataclasses.field(default="train", metadata={"help": "Split that is trained on."})
    eval_split: str | None = dataclasses.field(
        default=None, metadata={"help": "Split that is evaluated on during training."}
    )
    max_eval_samples: int | None = dataclasses.field(
        default=None, metadata={"help": "Number of rows drawn from the eval split, over as many clips as possible."}
    )
    eval_samples_seed: int = dataclasses.field(
        default=0, metadata={"help": "Seed of the draw of max_eval_samples rows."}
    )
    chains: str | None = dataclasses.field(
        default=None, metadata={"help": "JSONL file with chains of thought, relative to data_root."}
    )
    reflections: str | None = dataclasses.field(
        default=None, metadata={"help": "JSONL file with wrong chains and their corrections."}
    )
    pass_rates: str | None = dataclasses.field(
        default=None, metadata={"help": "JSONL file with the pass rates of the rows to train on."}
    )
    pass_rate_above: float = dataclasses.field(
        default=0.0, metadata={"help": "Share of right tries that a row must exceed; with pass_rates."}
    )
    pass_rate_below: float = dataclasses.field(
        default=1.0, metadata={"help": "Share of right tries that a row must stay under; with pass_rates."}
    )
    curriculum: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Order by pass rates: easy_to_hard, hard_to_easy, middle_out or shuffled; with GRPO."},
    )
    curriculum_bands: int | None = dataclasses.field(
        default=None, metadata={"help": "Number of parts of the curriculum within which rows are shuffled."}
    )
    curriculum_seed: int = dataclasses.field(default=0, metadata={"help": "Seed of the curriculum's shuffling."})
    fps: float = dataclasses.field(default=1.0, metadata={"help": "Frames for each second of a clip."})
    num_frames: int | None = dataclasses.field(
        default=10, metadata={"help": "Number of frames that a clip must have, or has at most (omni_avs, clips)."}
    )
    columns: dict | None = dataclasses.field(
        default=None, metadata={"help": "Names of a manifest's columns, such as {reference: caption}."}
    )
    skip_unlabelled: bool = dataclasses.field(
        default=False, metadata={"help": "Leave out rows whose true masks are not known."}
    )
    mask_cache: str | None = dataclasses.field(
        default=None, metadata={"help": "Folder for masks of omni_avs and clips as PNG files."}
    )
    frame_cache: str | None = dataclasses.field(
        default=None, metadata={"help": "Folder to keep the decoded frames of videos in."}
    )
    media_cache: str | None = dataclasses.field(
        default=None, metadata={"help": "Folder to unpack the media of hf_dataset into."}
    )
    task: str = dataclasses.field(
        default=REFERENCE_SEGMENTATION,
        metadata={"help": "Task of the model, as 'package.module:Name' or 'path/to/mine.py:Name'."},
    )
    instruction: str | None = dataclasses.field(
        default=None, metadata={"help": "User's text for a clip, with a {reference} field, instead of the task's own."}
    )
    system_prompt: str | None = dataclasses.field(
        default=None, metadata={"help": "System message before the user's text."}
    )
    min_pixels: int | None = dataclasses.field(
        default=None, metadata={"help": "Smallest area of a frame for the vision tower, in pixels."}
    )
    max_pixels: int | None = dataclasses.field(
        default=None, metadata={"help": "Largest area of a frame for the vision tower, in pixels."}
    )
    use_audio_in_video: bool = dataclasses.field(
        default=False, metadata={"help": "Put the sound between the frames instead of after them."}
    )
    drop_sound: bool = dataclasses.field(
        default=False, metadata={"help": "Give the model no sound, as one without ears needs it."}
    )
    embedding_cache: str | None = dataclasses.field(
        default=None, metadata={"help": "Folder for the embeddings of the frozen image encoder."}
    )
    data: list[dict] | None = dataclasses.field(
        default=None,
        metadata={"help": "Several data sets instead of one, a list in a YAML file (docs/mixing_data.md)."},
    )

    def asked_instruction(self) -> str:
        """Return the user's text for a clip: the one that is given, or the task's own."""
        return self.instruction or load_task(self.task).instruction

    def to_record(self) -> dict[str, Any]:
        """Return the arguments as files record them that a run resumes.

        The instruction is written out, and the usual task and newer options at their defaults are left out, so that
        records of earlier versions are equal. A cache of frames changes no result.
        """
        fields = {**dataclasses.asdict(self), "instruction": self.asked_instruction()}
        del fields["frame_cache"]
        usual = {
            "task": REFERENCE_SEGMENTATION,
            "columns": None,
            "skip_unlabelled": False,
            "drop_sound": False,
            "data": None,
        }
        return {k: v for k, v in fields.items() if k not in usual or v != usual[k]}


@dataclasses.dataclass
class DryRunArguments:
    """Whether a run is only tried."""

    dry_run: bool = dataclasses.field(
        default=False,
        metadata={
            "help": "Try data, model and rewards, print the cost of the whole run, and stop; nothing is written."
        },
    )


@dataclasses.dataclass
class TargetArguments:
    """Targets of supervised fine-tuning, and the teacher whose features are distilled.

    Attributes:
        target: kind of target, one of the task's `targets`; None for its usual one. Reference segmentation has
            "teacher" (stage 0), "chain" (stage 1, the usual one), "answer" (stage 1 without chains), "reflection" and
            "reflection_learn_wrong" (stage 2).
        replay_share: share of rows in reflective training that have no mistake and train only their chain.
        teacher: directory or hub name of the distillation's teacher; None for no distillation.
        teacher_features: file for the teacher's features, computed once and bound to this teacher; None keeps the
            teacher in memory and computes them in each step.
        teacher_instruction: instruction for the teacher, if it was trained with another one than the student.
        teacher_batch_size: number of rows in a forward pass of the teacher that computes the file.
    """

    target: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "What a row is trained to say, a target of the task; reference segmentation has teacher, chain "
            "(if none is named), answer, reflection and reflection_learn_wrong."
        },
    )
    replay_share: float = dataclasses.field(
        default=0.5, metadata={"help": "Share of rows without a mistake in reflective training."}
    )
    teacher: str | None = dataclasses.field(
        default=None, metadata={"help": "Folder or hub name of the model that features are distilled from."}
    )
    teacher_features: str | None = dataclasses.field(
        default=None, metadata={"help": "File for the teacher's features, which is made once."}
    )
    teacher_instruction: str | None = dataclasses.field(
        default=None, metadata={"help": "Instruction for the teacher, where it differs from the student's."}
    )
    teacher_batch_size: int = dataclasses.field(default=8, metadata={"help": "Rows of a forward pass of the teacher."})

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
        metadata={"help": "Reward functions, each as 'package.module:function' or 'path/to/file.py:function'."},
    )

    def __post_init__(self) -> None:
        given: Any = self.reward_funcs
        if isinstance(given, str):  # a YAML file may name a single one without a list
            self.reward_funcs = [given]
