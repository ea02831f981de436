#!/usr/bin/env bash
# MRPC (Table 3): 3,668 training examples, accuracy.
# The paper, base model -> + MUPPET: RoBERTa-B 90.2 -> 91.7, RoBERTa-L 90.9 -> 91.4, BART 90.4 -> 92.2.
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table3 mrpc "$@"
