#!/usr/bin/env bash
# A run (or one training stage) on this machine's GPUs, or on several machines without a scheduler.
#   recipes/cluster/torchrun.sh recipes/mini --optimisation.accumulate 8
# On several machines, run the same line on each, with the address of one of them:
#   NODES=2 FIRST_NODE=node-a:29500 recipes/cluster/torchrun.sh recipes/mini --optimisation.accumulate 16
# PROCESSES: per machine; by default one per GPU (of CUDA_VISIBLE_DEVICES, if set), or one without GPUs.
set -euo pipefail

target=${1:?"usage: torchrun.sh FOLDER-OR-YAML [--key value ...]"}
shift
verb=run
[[ $target == *.yaml ]] && verb=train

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296
# torch warns of names that cannot be looked up and of nodes that finish before others. WARNING here shows this,
# and what a process reports about one that it has lost.
export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR}

gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then  # which nvidia-smi ignores
    visible=$(tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -cE '^ *([0-9]|GPU-|MIG-)' || true)
    gpus=$((visible < gpus ? visible : gpus))
fi
# Otherwise a torch that cannot use them would train on the CPU for days.
device=()
((gpus == 0)) || device=(--device cuda)
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
if [[ ${NODES:-1} -gt 1 ]]; then
    rendezvous=(--nnodes "$NODES" --rdzv-id kdasr --rdzv-backend c10d
        --rdzv-endpoint "${FIRST_NODE:?"HOST:PORT of one of the machines"}")
else
    rendezvous=(--standalone)
fi
exec torchrun "${rendezvous[@]}" --nproc-per-node "$processes" -m kdasr.cli "$verb" "$target" "${device[@]}" "$@"
