#!/usr/bin/env bash
# Tests under Slurm: tools/slurm_test.sh PARTITION JOB CONFIG CHECKPOINT [flags of tools/test.py]
# Environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS (further arguments of srun).
set -euo pipefail
if (($# < 4)); then
  echo "usage: $0 PARTITION JOB CONFIG CHECKPOINT [flags of tools/test.py]" >&2
  exit 2
fi
tools=$(cd "$(dirname "$0")" && pwd)
# shellcheck disable=SC2086  # SRUN_ARGS is several words
PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" exec srun --partition="$1" --job-name="$2" \
  --gres="gpu:${GPUS_PER_NODE:-8}" --ntasks="${GPUS:-8}" --ntasks-per-node="${GPUS_PER_NODE:-8}" \
  --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  "${PYTHON:-python}" -u "$tools/test.py" "$3" "$4" --launcher slurm "${@:5}"
