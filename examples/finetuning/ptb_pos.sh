#!/usr/bin/env bash
# Penn Treebank parts of speech (Table 5): 38,219 training examples, accuracy.
# The paper, base model -> + MUPPET: RoBERTa-B 93.7 -> 93.2, RoBERTa-L 93.4 -> 97.9, BART 91.8 -> 97.2.
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table5 ptb_pos "$@"
