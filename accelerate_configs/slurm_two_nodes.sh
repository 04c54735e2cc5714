#!/bin/bash
# A training on two nodes of a Slurm cluster: it ends its time with a checkpoint, and is queued again until it is done.
#
#   sbatch accelerate_configs/slurm_two_nodes.sh recipes/grpo.py --config recipes/ref_avs/grpo_7b.yaml \
#       --data_root "$REF_AVS"
#
# The words after this file are what one machine would be told after `accelerate launch`. Account, partition, memory
# and modules of your cluster go here or on the command line of sbatch, which wins: `sbatch --nodes=4 --time=48:00:00`.
# The nodes need the same checkout, packages, data and output folder. NOT RUN on a cluster; a test runs it beside
# programs that stand for Slurm's.
#SBATCH --job-name=aurora-rl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

if [[ $# -eq 0 ]]; then
  echo "usage: sbatch $0 recipes/grpo.py --config FILE ..." >&2
  exit 2
fi

LAUNCH=${LAUNCH:-accelerate_configs/multi_node.yaml}  # another way of sharding: LAUNCH=accelerate_configs/zero3.yaml
MAX_RESTARTS=${MAX_RESTARTS:-50}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export LAUNCH
export HEAD_NODE=${nodes[0]}
export HEAD_PORT=$((20000 + SLURM_JOB_ID % 20000))  # jobs that share a node need ports of their own
# Launchers kill 30 seconds after SIGTERM, which a large checkpoint may exceed; all limits stay below --signal's 600.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540

# On each node: one launcher, whose rank is the node's.
# shellcheck disable=SC2329  # srun calls it
launch_node() {
  accelerate launch --config_file "$LAUNCH" \
    --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
    --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" \
    --main_process_ip "$HEAD_NODE" --main_process_port "$HEAD_PORT" \
    "$@" --resume_from_checkpoint true --stop_grace_s 480
}
export -f launch_node

# Every process writes its part of a checkpoint and ends. USR1 comes 600 seconds before the time is over. TERM comes of
# scancel, after which nothing shall start again, or of a preemption, after which Slurm itself queues the job again.
is_out_of_time=false
# shellcheck disable=SC2329  # a trap calls it
stop() {
  echo "stopping: a checkpoint is written at the end of the step"
  scancel --signal=TERM "$SLURM_JOB_ID"  # of the job's steps, not of this script
}
trap 'is_out_of_time=true; stop' USR1
trap stop TERM

# A node that has ended leaves the other five minutes to end as well, instead of waiting for it without end.
# shellcheck disable=SC2016  # the inner shell expands its own arguments
srun --wait=300 bash -c 'launch_node "$@"' launch_node "$@" &
step=$!
status=0
wait "$step" || status=$?
while kill -0 "$step" 2>/dev/null; do  # a signal ends `wait`, not the step
  status=0
  wait "$step" || status=$?
done

if [[ $status -eq 0 ]]; then
  echo "done"
elif [[ $is_out_of_time == true && ${SLURM_RESTART_COUNT:-0} -lt $MAX_RESTARTS ]]; then
  echo "queued again, to resume from the checkpoint"
  scontrol requeue "$SLURM_JOB_ID" || echo "it could not be queued again" >&2
else
  echo "failed with exit code $status: not queued again" >&2
fi
exit "$status"
