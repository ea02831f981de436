#!/usr/bin/env bash
# CNN/DailyMail (Table 4): 287,113 training examples, ROUGE-1/2/L.
# The paper, base model -> + MUPPET: BART 44.16/21.28/40.90 -> 44.45/21.25/41.4.
export MODEL=${MODEL:-bart_large}
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table4 cnn_dailymail "$@"
