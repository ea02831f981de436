#!/usr/bin/env bash
# All studies of multitask prompt tuning, then how similar the prompts of mpt.yaml's datasets are:
#   run.sh [options of 'muppet study']
#   SCALE   mini (default) or paper
#   RUNS    the folder of all runs; default: runs/mpt-SCALE
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
scale=${SCALE:-mini}
runs=${RUNS:-runs/mpt-$scale}
studies=("$here"/{mpt,few_shot,ablations,together}.yaml)
if [ "$scale" = mini ]; then studies+=("$here/lengths.yaml"); fi
muppet study "${studies[@]}" --scale "$scale" --runs "$runs" "$@"
if [ ! -e "$runs/studies/mpt/study.json" ]; then exit; fi  # of a dry run
for start in spot mpt; do
  mapfile -t checkpoints < <(python - "$runs" "$start" <<'PY'
import json, sys
runs, start = sys.argv[1:]
for tuning in json.load(open(f"{runs}/studies/mpt/study.json"))["fine_tunings"]:
    if (tuning["start"], tuning["seed"]) == (start, 1):
        print(f"{runs}/{tuning['run']}/checkpoint_last.pt")
PY
  )
  muppet similarity "${checkpoints[@]}" --figure "$runs/figures/similarity_$start.png"
done
