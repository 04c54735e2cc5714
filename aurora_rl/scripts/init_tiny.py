"""Stage 0 of the demo: a random model of a few 100,000 weights, with a vocabulary of the benchmark's texts.

python recipes/init_tiny.py --config recipes/synthetic/init.yaml
"""

import dataclasses
from collections.abc import Sequence

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.parser import ConfigParser
from aurora_rl.data.clip_reader import ClipReader
from aurora_rl.data.sample import AVSample
from aurora_rl.logs import setup_logging
from aurora_rl.models.mllm import MLLM_FAMILIES, MLLMFamily, load_family
from aurora_rl.rollout.calls import ToolRunner, tool_format_of
from aurora_rl.tasks.base import Task, load_task


@dataclasses.dataclass
class InitArguments:
    """The folder of the tiny model, its family, and its heads."""

    output_dir: str = dataclasses.field(metadata={"help": "Folder that the model is written to."})
    family: str = dataclasses.field(
        default=next(iter(MLLM_FAMILIES)),
        metadata={"help": "Family of the model: a model_type, 'package.module:Name' or 'path/to/file.py:Name'."},
    )
    segmenter: dict | None = dataclasses.field(default=None, metadata={"help": "Config of the model's mask decoder."})
    heads: dict | None = dataclasses.field(default=None, metadata={"help": "Configs of the model's other heads."})
    tiny: dict | None = dataclasses.field(
        default=None, metadata={"help": "Sizes of the model by name, where they differ from the family's own."}
    )
    environment_factory: str | None = dataclasses.field(
        default=None, metadata={"help": "Tools whose words the vocabulary shall know, named as in GRPO."}
    )


def asked(task: Task, sample: AVSample, instruction: str) -> str:
    """Return the text that asks a row's question."""
    return str(task.messages(sample, instruction=instruction)[-1]["content"][-1]["text"])


def said(task: Task, sample: AVSample) -> str:
    """Return the completion that a row trains; empty where it has none, as rows without chains of thought."""
    try:
        return task.target(sample).learned
    except ValueError:
        return ""


def texts_of_tools(family: MLLMFamily, environment_factory: str, samples: Sequence[AVSample]) -> list[str]:
    """Return what prompts say of tools, and the calls and answers of rows, as often as there are rows."""
    runner, tool_format = ToolRunner(environment_factory, ClipReader()), tool_format_of(family)
    turns = [tool_format.written(call, answer) for sample in samples for call, answer in runner.made(sample)]
    return [*[tool_format.shown(runner.schemas)] * len(samples), *turns]


def main(data_args: DataArguments, init_args: InitArguments) -> None:
    setup_logging()
    samples = load_split(data_args, data_args.train_split)
    # Texts are repeated, so that their words become single tokens even in a small benchmark.
    instruction = data_args.asked_instruction()
    task = load_task(data_args.task)
    texts = [text for s in samples for text in (asked(task, s, instruction), said(task, s), instruction)]
    family = load_family(init_args.family)
    if init_args.environment_factory is not None:
        texts += texts_of_tools(family, init_args.environment_factory, samples)
    segmenter = init_args.segmenter
    if segmenter is None and init_args.heads is None:
        segmenter = {"type": "dot", "image_size": 64, "width": 32}
    model, processor = family.build_tiny(texts, segmenter=segmenter, heads=init_args.heads, sizes=init_args.tiny)
    model.save_pretrained(init_args.output_dir)
    processor.save_pretrained(init_args.output_dir)


def run() -> None:
    """Read the command line and run the script."""
    main(*ConfigParser((DataArguments, InitArguments), description=__doc__).parse_args_and_config())
