#!/usr/bin/env bash
# PubMed (Table 5): 119,924 training examples, ROUGE-1/2/L.
# The paper, base model -> + MUPPET: BART 39.87/16.43/35.56 -> 45.13/19.80/39.90.
export MODEL=${MODEL:-bart_large}
exec "$(dirname "${BASH_SOURCE[0]}")/fine_tune.sh" table5 pubmed "$@"
