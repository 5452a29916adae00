#!/usr/bin/env bash
# Tests the backends on a GPU machine and measures them beside DALI's own pipeline and the processor's limits;
# the records go to docs/records/. Needs 'make setup' and a CUDA device.
# usage: tools/measure_gpu.sh IMAGES [PYTHON]      IMAGES: a folder of full-size JPEG photographs
set -euo pipefail
images=${1:?usage: tools/measure_gpu.sh IMAGES [PYTHON]}
python=${2:-.venv/bin/python}
cd "$(dirname "$0")/.."

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
  || { echo "error: torch sees no CUDA device; see 'nvidia-smi'" >&2; exit 2; }
"$python" -m pytest -q -m gpu tests

gpu=$("$python" -c 'import re, torch; print(re.sub("[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()))')
records=docs/records/$(date +%Y-%m-%d)-backends-$gpu.jsonl
threads=$(nproc)
for views in barlow crop_flip_pair; do
  for resolution in 96 224; do
    "$python" tools/bench_loaders.py --images "$images" --views "$views" --resolution "$resolution" \
      --batch-size 256 --num-threads "$threads" --backends cpu dali_backend dali_gpu_backend \
      --peers dali --limits decode_only --json "$records"
  done
done
echo "records: $records"
