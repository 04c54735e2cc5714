"""Stage 0 of the demo: a random Qwen2.5-Omni of about 0.47 M weights, with a vocabulary of the benchmark's texts.

python recipes/init_tiny.py --config recipes/synthetic/init.yaml
"""

from aurora_rl.assembly.early import check_command_line

if __name__ == "__main__":
    check_command_line("recipes/init_tiny.py")  # before the import of torch, which takes seconds

import dataclasses

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.parser import ConfigParser
from aurora_rl.logs import setup_logging
from aurora_rl.models.mllm import load_family


@dataclasses.dataclass
class InitArguments:
    """The folder of the tiny model, its family, and its heads."""

    output_dir: str = dataclasses.field(metadata={"help": "Folder that the model is written to."})
    family: str = dataclasses.field(
        default="qwen2_5_omni",
        metadata={"help": "Family of the model: a model_type, 'package.module:Name' or 'path/to/file.py:Name'."},
    )
    segmenter: dict | None = dataclasses.field(default=None, metadata={"help": "Config of the model's mask decoder."})
    heads: dict | None = dataclasses.field(default=None, metadata={"help": "Configs of the model's other heads."})
    tiny: dict | None = dataclasses.field(
        default=None, metadata={"help": "Sizes of the model by name, where they differ from the family's own."}
    )


def main(data_args: DataArguments, init_args: InitArguments) -> None:
    setup_logging()
    samples = load_split(data_args, data_args.train_split)
    # Texts are repeated, so that their words become single tokens even in a small benchmark.
    instruction = data_args.asked_instruction()
    texts = [text for s in samples for text in (s.reference, s.chain or "", instruction)]
    segmenter = init_args.segmenter
    if segmenter is None and init_args.heads is None:
        segmenter = {"type": "dot", "image_size": 64, "width": 32}
    family = load_family(init_args.family)
    model, processor = family.build_tiny(texts, segmenter=segmenter, heads=init_args.heads, sizes=init_args.tiny)
    model.save_pretrained(init_args.output_dir)
    processor.save_pretrained(init_args.output_dir)


if __name__ == "__main__":
    main(*ConfigParser((DataArguments, InitArguments), description=__doc__).parse_args_and_config())
