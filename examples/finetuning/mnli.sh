#!/usr/bin/env bash
# MNLI, matched (Table 3): 392,702 training examples, accuracy.
# The paper, base model -> + MUPPET: RoBERTa-B 87.6 -> 88.1, RoBERTa-L 90.2 -> 90.8, BART 89.9 -> 89.9.
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table3 mnli "$@"
