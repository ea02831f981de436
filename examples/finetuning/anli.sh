#!/usr/bin/env bash
# ANLI (Table 6): five training sets of 0.9 to 1.3 million examples, accuracy on A1, A2, A3 and all.
# The paper, RoBERTa -> + MUPPET, on all: S,M 31.1 -> 33.3, +F 32.8 -> 33.9, +F+A1 35.8 -> 36.7, +F+A1+A2 43.7 -> 45.9,
# S,M,F,ANLI 53.7 -> 56.9.
export MODEL=${MODEL:-roberta_large}
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table6 '*' "$@"
