"""Plugin that vLLM loads at the start of each of its processes (entry point `vllm.general_plugins`)."""

import os

from aurora_rl.models.mllm import FAMILIES, MLLMFamily, load_family
from aurora_rl.named.objects import load_object, name_of

#: Environment variable that names a family from outside the package, as the option `family` does: vLLM's processes
#: inherit it, and `vllm serve` is started with it.
FAMILY_VARIABLE = "AURORA_RL_FAMILY"

#: Our weight transfers of `vllm serve`: module and class, by the backend's name in `--weight-transfer-config`.
WEIGHT_TRANSFER_ENGINES = {
    "gloo": ("aurora_rl.rollout.cpu.gloo_transfer", "GlooWeightTransferEngine"),
}


def register() -> None:
    """Register the families' model classes and our weight transfers in vLLM, and mend what fails in its CPU build.

    A family's class is selected by `hf_overrides={"architectures": [family.engine_architecture]}`.

    Raises:
        ValueError: if the environment names a family that is not there.
    """
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.platforms import current_platform

    outside = os.environ.get(FAMILY_VARIABLE)
    for family in [*FAMILIES, *([type(load_family(outside))] if outside else [])]:
        _register_class(family)
    for name, (module, class_name) in WEIGHT_TRANSFER_ENGINES.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, module, class_name)
    if current_platform.is_cpu():
        from aurora_rl.rollout.cpu.experts import lay_out_experts_at_each_loading
        from aurora_rl.rollout.cpu.linear_layers import let_linear_layers_read_any_layout
        from aurora_rl.rollout.cpu.seeds import let_seeded_prompts_be_read_in_parts

        let_linear_layers_read_any_layout()
        let_seeded_prompts_be_read_in_parts()
        lay_out_experts_at_each_loading()


def register_with(family: MLLMFamily) -> None:
    """Register also a run's own family, here and in the processes that vLLM starts from here."""
    os.environ.pop(FAMILY_VARIABLE, None)
    if type(family) not in FAMILIES:
        os.environ[FAMILY_VARIABLE] = name_of(type(family))
    register()


def _register_class(family: type[MLLMFamily]) -> None:
    from vllm import ModelRegistry

    place = family.engine_class
    if place is None or family.engine_architecture in ModelRegistry.get_supported_archs():
        return
    # vLLM imports a module by itself, when the model is asked for; it knows no files.
    is_file = place.rpartition(":")[0].endswith(".py")
    found = load_object(place, what="model class inside vLLM") if is_file else place
    ModelRegistry.register_model(family.engine_architecture, found)
