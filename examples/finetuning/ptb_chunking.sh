#!/usr/bin/env bash
# CoNLL-2000 chunking (Table 5): 8,936 training examples, chunk F1.
# The paper, base model -> + MUPPET: RoBERTa-B 93.4 -> 95.5, RoBERTa-L 95.1 -> 96.9, BART 92.1 -> 96.1.
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table5 ptb_chunking "$@"
