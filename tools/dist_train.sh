#!/usr/bin/env bash
# Trains on several GPUs, or in several CPU processes: tools/dist_train.sh CONFIG GPUS [flags of tools/train.py]
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
set -euo pipefail
if (($# < 2)); then
  echo "usage: $0 CONFIG GPUS [flags of tools/train.py]" >&2
  exit 2
fi
tools=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$2" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  "$tools/train.py" "$1" --launcher pytorch "${@:3}"
