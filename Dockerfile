# Aurora-RL on CUDA GPUs, with everything that `make setup` installs but the tools of development, and vLLM's GPU build.
# NOT BUILT by the project, which has no GPU; a test lints it.
#
#   docker build --tag aurora-rl .
#   docker run --rm --init --gpus all --ipc host --volume "$PWD/data:/workspace/data:ro" \
#       --volume "$PWD/outputs:/workspace/outputs" --volume aurora-cache:/home/aurora/.cache \
#       aurora-rl grpo --config ref_avs/grpo_3b --data_root data/ref_avs --launch zero2
#
# `--ipc host`: processes of one machine exchange tensors in shared memory, of which a container has 64 MB by default.
# outputs/ must be writable by user 10001, or give `--user "$(id -u)" --env HOME=/tmp`. Keys and tokens come by `--env`
# when a container starts; none is in the image.
#
# The toolkit's compiler is needed while a run: DeepSpeed and Triton compile kernels. torch 2.13 is built for CUDA 13.0.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

ARG EXTRAS=vllm,trackio,serve,cot

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential ca-certificates python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home aurora \
    && install --directory --owner aurora /home/aurora/.cache /workspace/data /workspace/outputs

ENV VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1

WORKDIR /workspace

# torch goes first and by plain pip, as in the Makefile; this layer stays where only the code changes.
COPY constraints.txt /workspace/
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --constraint constraints.txt torch numpy uv

# What the package is built of, then what is run from the checkout.
COPY pyproject.toml README.md LICENSE /workspace/
COPY accelerate_configs /workspace/accelerate_configs
COPY aurora_rl /workspace/aurora_rl
COPY data_prep /workspace/data_prep
COPY recipes /workspace/recipes
COPY reward_fns /workspace/reward_fns
RUN uv pip install --no-cache --constraint constraints.txt ".[${EXTRAS}]"

USER 10001

ENTRYPOINT ["aurora-rl"]
CMD ["--help"]
