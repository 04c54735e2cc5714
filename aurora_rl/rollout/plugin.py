"""Plugin that vLLM loads at the start of each of its processes (entry point `vllm.general_plugins`)."""

from aurora_rl.models.mllm import FAMILIES

#: Our weight transfers of `vllm serve`: module and class, by the backend's name in `--weight-transfer-config`.
WEIGHT_TRANSFER_ENGINES = {
    "gloo": ("aurora_rl.rollout.cpu.gloo_transfer", "GlooWeightTransferEngine"),
}


def register() -> None:
    """Register our model classes and weight transfers in vLLM, and replace one method of its CPU build.

    A family's class is selected by `hf_overrides={"architectures": [family.engine_architecture]}`.
    """
    from vllm import ModelRegistry
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.platforms import current_platform

    known = ModelRegistry.get_supported_archs()
    for family in FAMILIES:
        if family.engine_class is not None and family.engine_architecture not in known:
            ModelRegistry.register_model(family.engine_architecture, family.engine_class)
    for name, (module, class_name) in WEIGHT_TRANSFER_ENGINES.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, module, class_name)
    if current_platform.is_cpu():
        from aurora_rl.rollout.cpu.seeds import let_seeded_prompts_be_read_in_parts

        let_seeded_prompts_be_read_in_parts()
