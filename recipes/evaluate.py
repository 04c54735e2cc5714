"""Score a model on a benchmark's splits, and with modalities taken away.

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/evaluate.py --config recipes/synthetic/evaluate.yaml

Leaves in `output_dir`: results.jsonl (a line a row, masks included), summary.json, and for each ablation
results.<ablation>.jsonl with its summary.<ablation>.json.
"""

import dataclasses
import json
import logging
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm
from trl import TrlParser

from aurora_rl.ablations import ABLATIONS, Ablation
from aurora_rl.assemble import assemble_encoder, assemble_model, load_split
from aurora_rl.config import DataArguments, ModelArguments
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation import sample_result, score_completion, score_rollout
from aurora_rl.inference import Predictor
from aurora_rl.logs import setup_logging
from aurora_rl.models.loading import LoadedModel
from aurora_rl.predictions import SampleResult, write_results
from aurora_rl.summary import summarise

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class EvaluationArguments:
    """What is scored, and how."""

    output_dir: str = dataclasses.field(metadata={"help": "Folder for the results."})
    splits: list[str] = dataclasses.field(
        default_factory=lambda: ["test_s", "test_u", "test_n"], metadata={"help": "Splits to score."}
    )
    preset: str = dataclasses.field(default="refavs", metadata={"help": "refavs, avsbench or aurora."})
    num_samples: int = dataclasses.field(default=0, metadata={"help": "Completions sampled a row, beside the greedy."})
    temperature: float = dataclasses.field(default=1.0, metadata={"help": "Of the sampled completions."})
    ablations: list[str] = dataclasses.field(default_factory=list, metadata={"help": f"Of {sorted(ABLATIONS)}."})
    max_completion_length: int = dataclasses.field(default=512, metadata={"help": "Tokens of a completion."})
    batch_size: int = dataclasses.field(default=8, metadata={"help": "Sequences generated at once."})
    append_seg: bool = dataclasses.field(
        default=False, metadata={"help": "Close completions without [SEG] by 'It is [SEG].', so that they have masks."}
    )
    seed: int = dataclasses.field(default=0, metadata={"help": "Of the sampled completions."})
    use_cpu: bool = dataclasses.field(default=False, metadata={"help": "Stay on the CPU."})


def evaluate(
    samples: list[AVSample],
    loaded: LoadedModel,
    data_args: DataArguments,
    args: EvaluationArguments,
    *,
    name: str,
    ablation: Ablation | None = None,
    num_samples: int = 0,
) -> list[SampleResult]:
    """Score every sample; the work is shared by the launched processes and the results come back in order."""
    state = PartialState()
    ablation = ablation or Ablation()
    encode = assemble_encoder(
        data_args,
        loaded,
        samples,
        load=ablation.load,
        frames_are_changed=ablation.changes_frames,
        device=state.device,
    )
    predictor = Predictor(
        loaded.model,
        encode,
        loaded.seg_token_id,
        max_completion_length=args.max_completion_length,
        batch_size=args.batch_size,
        append_seg=args.append_seg,
    )
    asked = list(zip(samples, ablation.change_samples(samples), strict=True))[
        state.process_index :: state.num_processes
    ]
    questions = [question for _, question in asked]
    progress = tqdm(total=len(asked), desc=name, disable=None if state.is_main_process else True)
    greedy = predictor.predict(questions)
    sampled = predictor.predict(questions, num_samples=num_samples, temperature=args.temperature, seed=args.seed)
    results = []
    for sample, (encoded, [completion]) in zip((s for s, _ in asked), greedy, strict=True):
        rollouts = next(sampled)[1] if num_samples else []
        score = score_completion(completion.text, completion.mask_probs, encoded.gt_masks, sample, preset=args.preset)
        scores = [score_rollout(r.text, r.mask_probs, encoded.gt_masks, sample) for r in rollouts]
        results.append(sample_result(sample, score, sampled=scores, preset=args.preset))
        progress.update()
    progress.close()
    return sorted(gather_object(results), key=lambda result: result.row)


def write(results: list[SampleResult], output_dir: Path, train_categories: set[str], *, suffix: str = "") -> None:
    """results.jsonl and summary.json, by the main process."""
    if PartialState().is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_results(output_dir / f"results{suffix}.jsonl", results)
        summary = summarise(results, train_categories=train_categories).to_dict()
        (output_dir / f"summary{suffix}.json").write_text(json.dumps(summary, indent=2) + "\n")
        logger.info(
            "%s: %s",
            output_dir / f"results{suffix}.jsonl",
            {k: v for k, v in summary["overall"].items() if v is not None},
        )


def main(model_args: ModelArguments, data_args: DataArguments, args: EvaluationArguments) -> None:
    state = PartialState(cpu=args.use_cpu)
    setup_logging(is_main_process=state.is_main_process)
    if unknown := sorted(set(args.ablations) - set(ABLATIONS)):
        raise ValueError(f"unknown ablations {unknown}: choose from {sorted(ABLATIONS)}")
    loaded = assemble_model(model_args, is_trainable=False)
    loaded.model.to(state.device)
    samples = [sample for split in args.splits for sample in load_split(data_args, split)]
    train_categories = {sample.category for sample in load_split(data_args, data_args.train_split)}
    output_dir = Path(args.output_dir)
    results = evaluate(samples, loaded, data_args, args, name="evaluate", num_samples=args.num_samples)
    write(results, output_dir, train_categories)
    for name in args.ablations:
        results = evaluate(samples, loaded, data_args, args, name=name, ablation=ABLATIONS[name])
        write(results, output_dir, train_categories, suffix=f".{name}")


if __name__ == "__main__":
    main(*TrlParser((ModelArguments, DataArguments, EvaluationArguments)).parse_args_and_config())
