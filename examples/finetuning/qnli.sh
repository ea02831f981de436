#!/usr/bin/env bash
# QNLI (Table 3): 104,743 training examples, accuracy.
# The paper, base model -> + MUPPET: RoBERTa-B 92.8 -> 93.3, RoBERTa-L 94.7 -> 94.9, BART 94.9 -> 94.6.
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table3 qnli "$@"
