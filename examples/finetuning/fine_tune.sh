#!/usr/bin/env bash
# Fine-tune from the base model and from the pre-finetuned one, on one dataset of a table, and report:
#   fine_tune.sh TABLE DATASET [options of 'muppet study']      TABLE: a study in this folder
#   MODEL       a model of examples/models, or a file; default: roberta_base, bart_large where a decoder is needed
#   SCALE       roberta or bart: what the model is, where its name does not begin with that
#   CHECKPOINT  the pre-finetuned model's checkpoint; default: examples/pre_finetuning makes it first
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
model=${MODEL:-roberta_base}
[ -f "$model" ] || model=$here/../models/${model%.yaml}.yaml
kind=$(basename "$model")
options=(--model "$model" --scale "${SCALE:-${kind%%_*}}")
if [ -n "${CHECKPOINT:-}" ]; then options+=(--checkpoint "$CHECKPOINT"); fi
exec muppet study "$here/$1.yaml" "${options[@]}" --only "$2 from *" "${@:3}"
