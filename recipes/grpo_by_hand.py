"""GRPO by hand: the whole algorithm in one file, to be read from top to bottom before anything else.

python recipes/grpo_by_hand.py --config recipes/synthetic/grpo.yaml --max_steps 2

A step samples G completions for each clip, decodes the masks at the `[SEG]` of each completion, lets the reward
functions judge its text and its masks, compares it with the others of its group, and changes the model so that better
completions become more likely and their masks come closer to the truth. `aurora_rl/trainers/grpo.py` has the same loss
and the same gradients (a test compares them), and is the one to train with. `assembly/plain_grpo.py` lists what is left
out here. B rows (the completions of a step), G of one prompt, L tokens of prompt and completion, F frames, V words.
"""

import copy
import dataclasses
import random

import torch
from torch import Tensor, nn

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, RewardArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.assembly.model import assemble_model
from aurora_rl.assembly.parser import RecipeParser
from aurora_rl.assembly.plain_grpo import check_plain
from aurora_rl.inference.predictor import Predictor, SeededSampling
from aurora_rl.losses import mask_loss
from aurora_rl.models.collate import collate_frames, distinct_media, right_pad
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.grounding import row_mask_logits, shared_media
from aurora_rl.models.head_tokens import find_last_token
from aurora_rl.models.heads import MaskHead
from aurora_rl.rewards import guard_reward_func, load_reward_func
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig


def main(
    model_args: ModelArguments, data_args: DataArguments, reward_args: RewardArguments, args: AuroraGRPOConfig
) -> None:
    check_plain(vars(model_args) | vars(args))
    torch.manual_seed(args.seed)
    samples = load_split(data_args, data_args.train_split)
    loaded = assemble_model(dataclasses.replace(model_args, dtype="float32"), head=MaskHead.name)
    encode = assemble_encoder(data_args, loaded, samples)
    reward_funcs = [guard_reward_func(load_reward_func(spec)) for spec in reward_args.reward_funcs]
    reward_weights = torch.tensor(args.reward_weights or [1.0] * len(reward_funcs))
    # In eval mode all along: with dropout, the policy that is trained would not be the one that sampled.
    policy = loaded.model.eval()
    reference = copy.deepcopy(policy).requires_grad_(False)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    betas = (args.adam_beta1, args.adam_beta2)
    optimizer = torch.optim.AdamW(trained, args.learning_rate, betas, args.adam_epsilon, args.weight_decay)
    sampler = Predictor(policy, encode, loaded.seg_token_id, max_completion_length=args.max_completion_length)
    num_prompts, copies = args.per_device_train_batch_size // args.num_generations, range(args.num_generations)
    draw = random.Random(args.seed)

    for step in range(args.max_steps):
        if step % args.num_iterations == 0:  # new rollouts; the next num_iterations - 1 steps use them again
            # Each clip is read once. Its G rows share their tensors, so that the towers run once for all of them.
            prompts = [encode(sample) for sample in draw.sample(samples, num_prompts)]
            rows = [prompt for prompt in prompts for _ in copies]  # B
            names = [f"{args.seed}/{step}/{prompt.sample.key}/{i}" for prompt in prompts for i in copies]
            noise = SeededSampling(names, temperature=args.temperature)
            completion_ids = [ids.tolist() for ids in sampler.generate(rows, noise)]
            with torch.no_grad():
                old = run_forward(policy, encode, rows, completion_ids, args.temperature)
                ref = run_forward(reference, encode, rows, completion_ids, args.temperature)

            texts = encode.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
            columns = reward_columns(encode, rows, texts, old) | {"completion_ids": completion_ids}
            scores = torch.tensor([func(**columns) for func in reward_funcs], dtype=torch.float32)  # None becomes NaN
            rewards = (scores.T * reward_weights).nansum(1)  # (B,)
            advantages = group_advantages(rewards, args.num_generations)
            teaches_masks = old.has_seg  # (B,) bool
            if args.mask_loss_on == "correct_only":  # otherwise wrong answers learn masks of another object
                answers = zip(columns["answers"], rows, strict=True)
                teaches_masks &= torch.tensor([encode.task.is_right(answer, row.sample) for answer, row in answers])

        new = run_forward(policy, encode, rows, completion_ids, args.temperature)
        loss = grpo_loss(new, old.logps, ref.logps, advantages, rows, teaches_masks, args)
        optimizer.zero_grad()
        loss.backward()
        # One norm over all gradients: where it is above the limit, the step is shortened and keeps its direction.
        nn.utils.clip_grad_norm_(trained, args.max_grad_norm or float("inf"))
        optimizer.step()
        print(f"step {step + 1}: reward {rewards.mean():.4f}, loss {loss.item():.4f}", flush=True)


@dataclasses.dataclass(frozen=True)
class ForwardPass:
    """Log-probabilities and masks of B completions, from one forward pass of a model."""

    logps: Tensor  # (B, L - 1), of each token but the first, given the tokens before it; 0 outside the completion
    in_completion: Tensor  # (B, L - 1) bool; False for the prompt and for padding
    mask_logits: list[Tensor]  # B of (F, height, width), at the frames' own size
    has_seg: Tensor  # (B,) bool; the masks of a completion without `[SEG]` have no meaning


def run_forward(
    model: nn.Module, encode: SampleEncoder, rows: list[EncodedSample], completion_ids: list[list[int]],
    temperature: float,
) -> ForwardPass:  # fmt: skip
    """Run a model once on prompts and completions, and decode the masks at each completion's last `[SEG]`."""
    batch = right_pad([row.prompt.prompt_ids for row in rows], completion_ids, encode.tokenizer.pad_token_id)
    input_ids, in_completion = batch["input_ids"], batch.pop("labels") != -100  # (B, L)
    # A `[SEG]` in the prompt is no answer. A row without one has the state of its last token decoded, with weight 0.
    seg_token_id, length = encode.tokenizer.convert_tokens_to_ids(encode.task.answer_token), input_ids.size(1)
    seg_index, has_seg = find_last_token(input_ids, in_completion, seg_token_id, num_completion_tokens=length)
    features, media_index = distinct_media(rows)
    media, frames = encode.family.collate_features(features, media_index), collate_frames(rows)
    with shared_media(model, media_index):
        outputs = model(**batch, **media, **frames, seg_index=seg_index)
    # Position t predicts token t + 1. Divided by the temperature, the logits are those that the tokens were drawn from.
    logps = (outputs.logits[:, :-1] / temperature).log_softmax(-1)  # (B, L - 1, V)
    logps = logps.gather(-1, input_ids[:, 1:, None]).squeeze(-1)  # (B, L - 1)
    in_completion = in_completion[:, 1:]
    logps = logps.masked_fill(~in_completion, 0.0)  # placeholders of media have -10,000, and a ratio of them may be inf
    frame_counts = frames["seg_frame_counts"][frames["seg_clip_index"]]  # (B,), F of each row
    mask_logits = row_mask_logits(model, outputs.mask_logits, frame_counts, [row.frame_size for row in rows])
    return ForwardPass(logps, in_completion, mask_logits, has_seg)


def reward_columns(
    encode: SampleEncoder, rows: list[EncodedSample], texts: list[str], rollouts: ForwardPass
) -> dict[str, list]:
    """Return what the reward functions read: columns of B entries, those of the dataset among them."""
    samples = [row.sample for row in rows]
    decoded = list(zip(rollouts.mask_logits, rollouts.has_seg.tolist(), strict=True))
    return {name: [getattr(sample, name) for sample in samples] for name in samples[0].to_row()} | {
        "sample": samples,
        "prompts": [encode.text_prompt(sample) for sample in samples],
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "answers": [encode.task.parse(text) for text in texts],
        "loudness_dbfs": [row.loudness_dbfs for row in rows],
        "gt_masks": [row.gt_masks for row in rows],  # (F, height, width) bool
        "mask_probs": [logits.sigmoid() if seg else None for logits, seg in decoded],
        "pred_masks": [logits > 0 if seg else None for logits, seg in decoded],  # p > 0.5
    }


def group_advantages(rewards: Tensor, num_generations: int) -> Tensor:
    """Return (B,): how much better each completion is than its group, in standard deviations of the group."""
    groups = rewards.view(-1, num_generations)  # (B / G, G)
    # The group's mean is in the place of a value model: a hard clip has low rewards, but no low advantages.
    centred = groups - groups.mean(1, keepdim=True)
    # Divided by the deviation (over G - 1, since the mean is the group's own), groups whose rewards are close together
    # teach as much as others. 1e-4 is for a group of equal rewards, which has nothing to teach: 0 / 1e-4 = 0.
    return (centred / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def grpo_loss(
    new: ForwardPass, old_logps: Tensor, ref_logps: Tensor, advantages: Tensor, rows: list[EncodedSample],
    teaches_masks: Tensor, args: AuroraGRPOConfig,
) -> Tensor:  # fmt: skip
    """Return the loss: the clipped objective, the KL divergence from the reference, and the masks (docs/method.md)."""
    ratio = (new.logps - old_logps).exp()  # (B, L - 1); all 1 in the first step on new rollouts, but with a gradient
    clipped = ratio.clamp(1 - args.epsilon, 1 + args.epsilon)
    # The smaller one: past the limit there is nothing more to gain, but a step in the wrong direction costs in full.
    objective = torch.min(ratio * advantages[:, None], clipped * advantages[:, None])
    # Schulman's k3 is never negative, and varies less than the log-ratio alone. It is an estimate from tokens that the
    # new policy samples; since the old one has sampled these, it is weighted by the ratio.
    log_ratio = ref_logps - new.logps
    kl = ratio * (log_ratio.exp() - log_ratio - 1)
    per_token_loss = -objective + args.beta * kl
    # Divided by its own number of tokens, a long completion weighs as much as a short one (an empty one has the sum 0).
    num_tokens = new.in_completion.sum(1).clamp(min=1)  # (B,)
    per_row_loss = (per_token_loss * new.in_completion).sum(1) / num_tokens
    policy_loss = per_row_loss.mean()  # divided by B, the step does not grow with the batch
    # Divided by the number of completions that teach masks (at least 1), not by B: otherwise the mask decoder would
    # learn slowly as long as few answers are right.
    masks = mask_loss(
        new.mask_logits, [row.gt_masks for row in rows], row_weights=teaches_masks.float(),
        bce_weight=args.mask_bce_weight, dice_weight=args.mask_dice_weight, dice_variant=args.dice_variant,
    )  # fmt: skip
    return policy_loss + args.mask_loss_weight * masks.total


if __name__ == "__main__":
    parser = RecipeParser((ModelArguments, DataArguments, RewardArguments, AuroraGRPOConfig), description=__doc__)
    main(*parser.parse_args_and_config())
