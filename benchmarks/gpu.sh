#!/usr/bin/env bash
# What runs on a GPU, and how fast, in a few minutes; the result goes to docs/results/gpu.json, or to the folder $OUT.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
"${PYTHON:-python3}" benchmarks/gpu.py --json "${OUT:-docs/results}/gpu.json"
