#!/usr/bin/env bash
# QQP (Table 3): 363,846 training examples, accuracy.
# The paper, base model -> + MUPPET: RoBERTa-B 91.9 -> 91.9, RoBERTa-L 92.2 -> 92.2, BART 92.5 -> 92.7.
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table3 qqp "$@"
