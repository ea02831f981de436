#!/usr/bin/env bash
# HellaSwag (Table 4): 39,905 training examples, accuracy.
# The paper, base model -> + MUPPET: RoBERTa-B 65.1 -> 69.0, RoBERTa-L 83.4 -> 86.4, BART 84.1 -> 75.9.
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table4 hellaswag "$@"
