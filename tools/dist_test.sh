#!/usr/bin/env bash
# Tests on several GPUs, or in several CPU processes: tools/dist_test.sh CONFIG CHECKPOINT GPUS [flags of tools/test.py]
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
set -euo pipefail
if (($# < 3)); then
  echo "usage: $0 CONFIG CHECKPOINT GPUS [flags of tools/test.py]" >&2
  exit 2
fi
tools=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$3" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  "$tools/test.py" "$1" "$2" --launcher pytorch "${@:4}"
