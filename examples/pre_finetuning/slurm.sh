#!/usr/bin/env bash
#SBATCH --job-name=muppet
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=4-00:00:00
#SBATCH --requeue
# Pre-finetune on 1 to 8 nodes: sbatch --nodes 4 examples/pre_finetuning/slurm.sh roberta_large [options of 'muppet study']
# Submit it from the project's folder, with the encoder and the data there, on a file system that all nodes have. An
# update has 64 sub-batches on any number of GPUs. After a fault torchrun starts all workers again, up to three times; they
# go on from the last checkpoint, as does a job that is put back into the queue.
set -euo pipefail
model=${1:?name a model of examples/models, as roberta_base}
nodes=${SLURM_JOB_NUM_NODES:?submit this with sbatch}
gpus=${SLURM_GPUS_ON_NODE:-8}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
rendezvous="--rdzv-backend c10d --rdzv-endpoint ${hosts%%$'\n'*}:${PORT:-29500} --rdzv-id $SLURM_JOB_ID"
# with PyTorch 2.13 workers that are started again find each other only so
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "${SLURM_SUBMIT_DIR:-.}/examples/pre_finetuning/pre_finetune.sh" "$model" --workers $((nodes * gpus)) \
    --launcher "srun torchrun --nnodes $nodes --nproc-per-node $gpus --max-restarts 3 $rendezvous --no-python" "${@:2}"
