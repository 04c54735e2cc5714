"""Where modules of version 0.1 have moved, for configs and code that still name the old places."""

#: By the old name, both without `aurora_rl.`; of a package, its modules have moved with it.
MOVED = {
    "ablations": "evaluation.ablations",
    "addresses": "endpoint.addresses",
    "answer_files": "inference.answer_files",
    "assemble": "assembly",
    "assembly.reward_names": "assembly.object_names",
    "bootstrap": "evaluation.intervals",
    "charts": "report.charts",
    "comparison": "evaluation.comparison",
    "completions": "tasks.completions",
    "config": "assembly.arguments",
    "data.synthetic": "synthetic",
    "data.targets": "tasks.targets",
    "demo": "serve",
    "evaluation": "evaluation.scoring",
    "gallery": "report.clips",
    "inference": "inference.predictor",
    "model_evaluation": "evaluation.of_model",
    "models.batch": "models.collate",
    "models.embedding_cache": "caches.image_embeddings",
    "models.embedding_shard": "caches.embedding_shard",
    "models.hub_export": "export.hub_folder",
    "models.model_card": "export.model_card",
    "models.propagation": "inference.propagation",
    "models.seg_tokens": "models.head_tokens",
    "models.segmentation": "models.grounding",
    "models.segmenters": "models.heads.segmenters",
    "models.teacher_features": "caches.teacher_features",
    "models.tiny": "models.mllm",
    "output_lock": "files.output_lock",
    "overlay": "inference.overlay",
    "pages": "report.pages",
    "pipeline": "inference.pipeline",
    "plain_files": "files.plain",
    "prediction_files": "evaluation.mask_files",
    "predictions": "evaluation.records",
    "prompts": "tasks.prompts",
    "recipe_parser": "assembly.parser",
    "report": "report.training_page",
    "rescoring": "evaluation.of_saved_masks",
    "resume_file": "files.journal",
    "rollout.gloo_transfer": "rollout.cpu.gloo_transfer",
    "rollout.vllm_cpu_seeds": "rollout.cpu.seeds",
    "rollout.vllm_narrow_heads": "models.mllm.narrow_heads",
    "run_lengths": "data.run_lengths",
    "score_page": "report.score_page",
    "scores": "evaluation.tables",
    "summary": "evaluation.tables",
    "trainers.vllm_sampler": "rollout.vllm_source",
    "whole_files": "files.atomic",
    "yaml_environment": "assembly.environment",
}


def new_place(module: str) -> str | None:
    """Return the full name of the module that has taken the place of another; None where nothing has moved.

    >>> new_place("aurora_rl.pipeline")
    'aurora_rl.inference.pipeline'
    """
    name = module.removeprefix("aurora_rl.")
    for old in sorted(MOVED, key=len, reverse=True):
        if module.startswith("aurora_rl.") and (name == old or name.startswith(f"{old}.")):
            return f"aurora_rl.{MOVED[old]}{name[len(old) :]}"
    return None
