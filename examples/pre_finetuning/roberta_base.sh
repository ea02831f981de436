#!/usr/bin/env bash
# Pre-finetune RoBERTa-Base on the 41 datasets that need no decoder. Every hyper-parameter and its origin: examples/models/roberta_base.yaml
exec "$(dirname "${BASH_SOURCE[0]}")/pre_finetune.sh" roberta_base "$@"
