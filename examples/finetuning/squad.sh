#!/usr/bin/env bash
# SQuAD 1.1 (Table 3): 87,599 training examples, exact match and F1.
# The paper, base model -> + MUPPET: RoBERTa-B 82.6 -> 86.6, RoBERTa-L 88.7 -> 89.4.
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table3 squad "$@"
