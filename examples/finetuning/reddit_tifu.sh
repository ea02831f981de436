#!/usr/bin/env bash
# Reddit TIFU, long (Table 4): 42,139 training examples, ROUGE-1/2/L.
# The paper, base model -> + MUPPET: BART 24.19/8.12/21.31 -> 30.30/11.25/24.92.
export MODEL=${MODEL:-bart_large}
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table4 reddit_tifu "$@"
