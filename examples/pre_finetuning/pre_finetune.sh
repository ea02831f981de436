#!/usr/bin/env bash
# Pre-finetune a model of examples/models on the GPUs of this machine: pre_finetune.sh MODEL [options of 'muppet study'].
# It prepares the datasets that are missing, and goes on where it was stopped.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
model=${1:?name a model of examples/models, as roberta_base}
exec muppet study "$here/pre_finetuning.yaml" --model "$here/../models/${model%.yaml}.yaml" "${@:2}"
