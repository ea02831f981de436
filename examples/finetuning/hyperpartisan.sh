#!/usr/bin/env bash
# Hyperpartisan news, by article (Table 5): 645 training examples, accuracy.
# The paper, base model -> + MUPPET: RoBERTa-B 84.2 -> 85.8, RoBERTa-L 90.4 -> 92.5, BART 85.1 -> 87.2.
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table5 hyperpartisan "$@"
