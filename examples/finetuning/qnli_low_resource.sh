#!/usr/bin/env bash
# QNLI on 9 shares of its training set, from 10% to all, from every scale of pre-finetuning (Figure 3).
# The paper: the larger the scale, the less data it takes. First run examples/studies/scale.yaml, or this does.
study=$(dirname "${BASH_SOURCE[0]}")/../studies/low_resource.yaml
exec muppet study "$study" --scale paper --only 'qnli (*' "$@"
