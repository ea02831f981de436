#!/usr/bin/env bash
# Pre-finetune BART-Base on all 46 datasets, with R3F. Every hyper-parameter and its origin: examples/models/bart_base.yaml
exec "$(dirname "${BASH_SOURCE[0]}")/pre_finetune.sh" bart_base "$@"
