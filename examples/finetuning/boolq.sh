#!/usr/bin/env bash
# BoolQ (Table 4): 9,427 training examples, accuracy.
# The paper, base model -> + MUPPET: RoBERTa-B 82.0 -> 83.8, RoBERTa-L 86.4 -> 87.5, BART 86.2 -> 86.9.
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table4 boolq "$@"
