#!/usr/bin/env bash
# Penn Treebank parsing (Table 5): 39,832 training examples, bracket F1.
# The paper, base model -> + MUPPET: RoBERTa-B 95.1 -> 94.5, RoBERTa-L 94.5 -> 95.7, BART 91.1 -> 94.5.
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table5 ptb_parsing "$@"
