#!/usr/bin/env bash
# BigPatent (Table 5): 1,207,222 training examples, ROUGE-1/2/L.
# The paper, base model -> + MUPPET: BART 48.54/29.35/39.42 -> 52.34/33.50/42.80.
export MODEL=${MODEL:-bart_large}
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table5 big_patent "$@"
