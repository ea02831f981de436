#!/usr/bin/env bash
# Pre-finetune RoBERTa-Large on the 41 datasets that need no decoder. Every hyper-parameter and its origin: examples/models/roberta_large.yaml
exec "$(dirname "${BASH_SOURCE[0]}")/pre_finetune.sh" roberta_large "$@"
