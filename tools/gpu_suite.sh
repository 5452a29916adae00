#!/usr/bin/env bash
# Run the checks that need a GPU, in eight minutes on a bare machine with torch and Triton. Each result is
# written to OUT.jsonl at once, as a line of JSON. If a group of checks fails, its exit code is recorded and
# the next group begins. Without a GPU the script stops, with exit code 0, at the first group that needs one.
# usage: tools/gpu_suite.sh OUT.jsonl [CASES.npz] [PYTHON]
#   CASES.npz  from 'python tools/gpu/cases.py CASES.npz' where Sluice is installed; written here if missing
#   Some checks run only where their libraries are installed: DALI, the loaders (numba, tyro, ...),
#   torchvision, kornia, pytest.
#   SUITE_IMAGES=FOLDER gives JPEG files to the group loaders; without it, groups fed and resume draw images.
set -uo pipefail
out=${1:?usage: tools/gpu_suite.sh OUT.jsonl [CASES.npz] [PYTHON]}
cases=${2:-$out.cases.npz}
python=${3:-python3}
seconds=${SUITE_SECONDS:-480}
out=$(realpath "$out") cases=$(realpath -m "$cases")
cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1
: >"$out" || exit 2

say() { printf '%s\n' "$1" | tee -a "$out"; }
left() { echo $((seconds - SECONDS)); }
group() {  # name, command...: append each line that the command prints to OUT.jsonl
  within "$1" "$(left)" "${@:2}" 2>>"$out.log" | tee -a "$out"
  told "$1" "${PIPESTATUS[0]}"
}
texts() {  # name, seconds, command...: run a command that prints no JSON; its output goes to the log
  within "$1" "$2" "${@:3}" >>"$out.log" 2>&1
  told "$1" "$?"
}
within() {  # name, seconds, command...: run the command; exit code 124 if it runs out of time
  [ "$(left)" -lt 5 ] && return 124
  timeout "$2" "${@:3}"
}
told() {
  local name=$1 code=$2
  if [ "$code" -eq 124 ]; then say "{\"group\": \"$name\", \"cut\": \"no time left\"}"; return 1; fi
  [ "$code" -eq 0 ] || [ "$code" -eq 3 ] || say "{\"group\": \"$name\", \"exit_code\": $code}"
  return "$code"
}

if [ ! -f "$cases" ]; then
  group cases "$python" tools/gpu/cases.py "$cases"
  [ -f "$cases" ] || { say '{"group": "cases", "needs": "a file of tools/gpu/cases.py"}'; exit 1; }
fi
TRITON_INTERPRET=1 group interpreter "$python" tools/gpu/suite.py interpreter "$cases"

group machine "$python" tools/gpu/suite.py machine "$cases"
[ $? -eq 3 ] && exit 0
run() { for name in "$@"; do group "$name" "$python" tools/gpu/suite.py "$name" "$cases"; done; }
run parity no_sync lifetime nccl engine stall fed resume peers  # time may run out before the last of these
if "$python" -c 'import numba, tyro, pytest' 2>/dev/null; then
  texts tests 120 "$python" -m pytest -q -m gpu tests/loaders  # exit code 5: pytest collected no test
fi
run sanitizer compiled fed_others
if [ -z "${SUITE_IMAGES:-}" ]; then
  say '{"group": "loaders", "skipped": "SUITE_IMAGES names no folder of JPEG files"}'
elif "$python" -c 'import numba, tyro' 2>/dev/null; then
  for resolution in 96 224; do
    texts loaders "$(left)" "$python" tools/bench_loaders.py --images "$SUITE_IMAGES" --views barlow \
      --resolution "$resolution" --batch-size 256 --num-threads "$(nproc)" --runs 2 --seconds 4 \
      --backends cpu_gpu_backend hybrid_gpu_backend resident_gpu_backend dali_gpu_backend --peers kornia dali \
      --limits decode_only --json "$out"
  done
else
  say '{"group": "loaders", "skipped": "numba or tyro is missing"}'
fi
