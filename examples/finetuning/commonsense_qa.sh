#!/usr/bin/env bash
# CommonsenseQA (Table 4): 9,741 training examples, accuracy.
# The paper, base model -> + MUPPET: RoBERTa-B 66.2 -> 69.4, RoBERTa-L 78.1 -> 79.2, BART 78.1 -> 74.8.
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table4 commonsense_qa "$@"
