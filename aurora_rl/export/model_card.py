"""The README.md of an exported model: what it is, what it was trained on, its scores, how to load it, its limits.

The card has no invented content: the exporter states data and licence, and the scores come from an evaluation's file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from peft import PeftModel

from aurora_rl import __version__
from aurora_rl.files.atomic import write_whole
from aurora_rl.files.plain import parse_json, read_text_file
from aurora_rl.models.heads import MaskHead, head_attribute, head_class
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.mllm import FAMILIES
from aurora_rl.models.state_layer import LAST, state_layer_of
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation

TAGS = ["video", "audio", "chain-of-thought", "aurora-rl"]
MASK_TAGS = ["audio-visual-segmentation", "referring-segmentation"]
PIPELINE_TAG = "video-text-to-text"
BLIND_PIPELINE_TAG = "audio-text-to-text"
MASK_PIPELINE_TAG = "mask-generation"  # the nearest; the hub has no task for a video, its sound and a sentence
#: Columns of the table of scores where masks are scored, as scores.json and docs/evaluation.md call them; otherwise it
#: has all numbers.
COLUMNS = ("J", "F", "J&F", "S", "S_per_frame", "null_accuracy", "n", "missing")


@dataclasses.dataclass(frozen=True)
class CardDetails:
    """Contents of the card that the checkpoint does not hold.

    Attributes:
        name: name of the model, on the hub `owner/name`.
        license: licence of the weights, as an identifier of the hub such as `apache-2.0`.
        datasets: names of the training data, if possible on the hub.
        scores: table from `score_table`.
    """

    name: str
    license: str | None = None
    datasets: tuple[str, ...] = ()
    scores: str | None = None


def write_model_card(folder: Path, loaded: LoadedModel, details: CardDetails, *, base_model: str | None) -> None:
    """Write README.md into an exported folder.

    Raises:
        OSError: if it cannot be written, naming it; a former one is unchanged.
    """
    is_adapter = isinstance(loaded.model, PeftModel)
    parts = [
        f"---\n{_front_matter(loaded, details, base_model, is_adapter=is_adapter)}\n---\n",
        f"# {details.name}\n",
        _description(loaded, base_model, is_adapter=is_adapter),
        "## Training data\n",
        "".join(f"- {name}\n" for name in details.datasets) or "Not stated by who exported the model.\n",
        "## Scores\n",
        details.scores or NO_SCORES,
        "## How to load it\n",
        _loading(loaded, details.name, is_adapter=is_adapter),
        "## Limits\n",
        _limits(loaded),
        "## Licence\n",
        _licence(details, base_model),
    ]
    write_whole(folder / "README.md", "\n".join(parts))


def score_table(path: Path) -> str:
    """Return an evaluation's numbers as a Markdown table, under the name of their preset.

    Args:
        path: scores.json of an evaluation.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is not of that kind.
    """
    content = _read_scores(path)
    rows = {**content["splits"], **{f"Mix, {name}": row for name, row in content["mix"].items() if row}}
    known = dict.fromkeys(name for row in rows.values() for name in row)
    has_masks = "missing" in known
    columns = [name for name in COLUMNS if name in known] if has_masks else list(known)
    preset = f"Preset `{content['preset']}`; the" if has_masks else "The"
    lines = [
        f"{preset} definitions are in Aurora-RL's `docs/evaluation.md`.\n",
        f"| | {' | '.join(columns)} |",
        f"|---|{'---:|' * len(columns)}",
        *(f"| {name} | {' | '.join(_cell(row.get(column)) for column in columns)} |" for name, row in rows.items()),
    ]
    if "note" in content:
        lines.append(f"\nNote: {content['note']}.")
    return "\n".join(lines) + "\n"


def _read_scores(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text_file(path))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): give scores.json of `aurora-rl evaluate`") from error
    is_table = isinstance(content, dict) and isinstance(content.get("preset"), str)
    if not is_table or not all(isinstance(content.get(key), dict) for key in ("splits", "mix")):
        raise ValueError(f"{path} holds no preset, splits and mix: give scores.json of `aurora-rl evaluate`")
    if "num_rows" in content:
        raise ValueError(f"{path} is a summary of version 0.1: give the scores.json beside it, or evaluate again")
    return content


def _cell(value: float | int | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _hears(loaded: LoadedModel) -> bool:
    """Tell whether the model answers about sound: it has ears, and was given sound in training."""
    options = loaded.clip_options
    return loaded.family.hears and not (options is not None and options.prompt.drop_sound)


def _sees(loaded: LoadedModel) -> bool:
    """Tell whether the language model sees the frames."""
    return loaded.family.sees is not None


def _is_given_frames(loaded: LoadedModel) -> bool:
    """Tell whether anything sees the frames: the language model or a head."""
    return _sees(loaded) or bool(loaded.heads)


def _clip(loaded: LoadedModel) -> str:
    """Return what the model is given of a clip."""
    if not _is_given_frames(loaded):
        return "a sound"
    if not _sees(loaded):
        return "a video that it hears without seeing it"
    return "a video and its sound" if _hears(loaded) else "a video without its sound"


def _of_layer(loaded: LoadedModel) -> str:
    layer = state_layer_of(loaded.segmenter_config)
    return "" if layer == LAST else f" after the decoder's layer {layer}"


def _front_matter(loaded: LoadedModel, details: CardDetails, base_model: str | None, *, is_adapter: bool) -> str:
    has_masks = MaskHead.name in loaded.heads
    in_words = PIPELINE_TAG if _sees(loaded) else BLIND_PIPELINE_TAG
    left_out = {
        name for name, is_given in (("audio", _hears(loaded)), ("video", _is_given_frames(loaded))) if not is_given
    }
    data = ModelCardData(
        license=details.license or "other",
        base_model=base_model,
        base_model_relation=None if base_model is None else "adapter" if is_adapter else "finetune",
        datasets=[name for name in details.datasets if "/" in name] or None,
        pipeline_tag=MASK_PIPELINE_TAG if has_masks else in_words,
        tags=[*(MASK_TAGS if has_masks else []), *(tag for tag in TAGS if tag not in left_out)],
    )
    return str(data)


def _description(loaded: LoadedModel, base_model: str | None, *, is_adapter: bool) -> str:
    heads = list(loaded.heads)
    has_masks = MaskHead.name in heads
    with_head = "mask decoder" if has_masks else f"head of {' and '.join(heads)}" if heads else ""
    kind = "A LoRA adapter" if is_adapter else "A language model"
    parts = "" if not with_head else f" and {with_head}" if is_adapter else f" with a {with_head}"
    of = "" if base_model is None else f", trained from [{base_model}](https://huggingface.co/{base_model})"
    clip = _clip(loaded)
    does = f"It answers questions about {clip} in words."
    if has_masks:
        given = clip.replace(" and its sound", ", its sound")
        does = (
            f"Given {given} and a sentence that refers to an object, it reasons step by step, names the "
            f"object, and emits one `[SEG]` token, whose hidden state{_of_layer(loaded)} the mask decoder "
            f"(`{loaded.segmenter_config['type']}`) turns into a mask on every frame."
        )
    elif heads:
        tokens = ", ".join(f"`{head_class(name).token}`" for name in heads)
        does = f"It answers about {clip}, and predicts {' and '.join(heads)} on every frame at {tokens}."
    return (
        f"{kind}{parts}{of}. {does} Trained and exported with Aurora-RL "
        f"{__version__}, by the method of AURORA ([arXiv 2508.02149](https://arxiv.org/abs/2508.02149)).\n"
    )


NO_SCORES = "None were given when the model was exported.\n"


def _loading(loaded: LoadedModel, name: str, *, is_adapter: bool) -> str:
    base = loaded.family.model_class
    plain = next(c for c in base.__mro__ if c.__module__.startswith("transformers.models."))
    result = "masks  # (F, H, W) bool" if MaskHead.name in loaded.heads else "value"
    options = loaded.clip_options
    is_usual = options is None or options.task == ReferenceSegmentation.__name__
    task = "" if options is None or is_usual else f', task="module_or_file:{options.task}"'
    asked = "The object making a sound." if is_usual else "Which sounds first?"
    family = "" if type(loaded.family) in FAMILIES else f', family="module_or_file:{type(loaded.family).__name__}"'
    how = HOW_TO_LOAD.format(name=name, result=result, named=family + task, asked=asked)
    if is_adapter:
        return how + ADAPTER_LOADING
    left_out = "".join(f", reports the weights `{head_attribute(head)}.*` as unused" for head in loaded.heads)
    return how + WHOLE_LOADING.format(
        name=name,
        module=base.__module__,
        own=base.__name__,
        plain=plain.__name__,
        reads=f"writes chains of thought{left_out}{', and gives no masks' if MaskHead.name in loaded.heads else ''}",
    )


HOW_TO_LOAD = """\
With Aurora-RL installed; only safetensors are read, and no code of this repository is run:

```python
from aurora_rl.inference.pipeline import AuroraPipeline

answer = AuroraPipeline("{name}"{named})(video="clip.mp4", text="{asked}")
answer.references[0].{result}
```

"""

WHOLE_LOADING = """\
`aurora_rl.models.loading.load_model` gives the model with its processor, for further training. The class alone, without
the bias that keeps multimodal tokens out of what it writes:

```python
from {module} import {own}

model = {own}.from_pretrained("{name}")
```

Plain transformers reads the language model alone, by `{plain}.from_pretrained`: it {reads}.
"""

ADAPTER_LOADING = """\
`aurora_rl.models.loading.load_model` gives the model with its processor, for further training; it reads the base model
from the hub. Plain PEFT does not load this folder where a head's weights lie beside the adapter: the base model has
none for them to go to.
"""


DEAF = "It hears nothing: the sound of a clip is dropped, and references to sounds are guessed from what is seen."
BLIND = "It sees nothing: its words come from what is heard, and of the frames only a head reads anything."


def _limits(loaded: LoadedModel) -> str:
    lines = [*([] if _hears(loaded) else [DEAF]), *([] if _sees(loaded) else [BLIND])]
    if (options := loaded.clip_options) is not None and not options.num_frames:
        lines.append("Trained on sound alone, without frames.")
    elif options is not None:
        lines.append(
            f"Trained on clips of at most {options.num_frames} frames, {options.fps:g} a second; longer ones are "
            "answered window by window."
        )
    for name, config in loaded.heads.items():
        if (checkpoint := config.get("checkpoint")) is not None:
            part = "mask decoder" if name == MaskHead.name else f"head of {name}"
            lines.append(f"The {part}'s frozen image encoder is not in this folder: it is read from `{checkpoint}`.")
    if MaskHead.name in loaded.heads:
        lines += [
            "The chain of thought is generated text: it can be wrong where the mask is right, and the other way round.",
            "A reference to something that is not there should be answered by empty masks; the scores of null "
            "references say how often it is not.",
        ]
    lines += [
        "It answers about the objects, sounds and sentences of its training data; beyond them nothing was measured.",
    ]
    return "".join(f"- {line}\n" for line in lines)


def _licence(details: CardDetails, base_model: str | None) -> str:
    if details.license is not None:
        return f"{details.license}\n"
    source = "of the model that it was trained from" if base_model is None else f"of {base_model}"
    return f"Not stated by who exported the model; the licence {source} applies, and those of the training data.\n"
