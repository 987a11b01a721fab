#!/usr/bin/env bash
# Everything there is to measure on an accelerator, in one go:
#   benchmarks/gpu.sh                 on a GPU, about half an hour; results in runs/gpu
#   benchmarks/gpu.sh tiny            the same on a CPU and very small, to see that it runs
# PYTHON   the interpreter whose torch sees the GPU (python3)
# OUT      where results go (runs/gpu)
# FSDD     a checkout of the Free Spoken Digit Dataset; without it that recipe is left out
# ONLY     some of: tests steps recipes label loader (all)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scale=${1:-full}
python=${PYTHON:-python3}
out=${OUT:-runs/gpu}
only=${ONLY:-tests steps recipes label loader}
case $scale in
    full) device=cuda ;;
    tiny) device=cpu ;;
    *) echo "usage: benchmarks/gpu.sh [full|tiny]" >&2 && exit 2 ;;
esac

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296

# A machine with a GPU often has torch and not the rest. All of these are small and need no compiler.
missing=$("$python" - <<'PY'
from importlib.util import find_spec
packages = {"torch": "torch", "torchaudio": "torchaudio", "speechbrain": "speechbrain", "hyperpyyaml": "hyperpyyaml",
            "ruamel.yaml": "ruamel.yaml", "soundfile": "soundfile", "sentencepiece": "sentencepiece", "numpy": "numpy",
            "safetensors": "safetensors", "zstandard": "zstandard", "fsspec": "fsspec", "jiwer": "jiwer", "rich": "rich",
            "espeakng_loader": "espeakng-loader", "onnx": "onnx", "onnxruntime": "onnxruntime",
            "matplotlib": "matplotlib", "pytest": "pytest", "pytest_timeout": "pytest-timeout",
            "hypothesis": "hypothesis"}
def there(module):
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
print(" ".join(package for module, package in packages.items() if not there(module)))
PY
)
if [[ -n $missing ]]; then
    echo "$python lacks: $missing" >&2
    echo "Install them beside its torch: $python -m pip install --no-deps -c constraints.txt $missing" >&2
    exit 2
fi

mkdir -p "$out"
"$python" -c "import torch; print('torch', torch.__version__, 'on', torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU')"
wants() { [[ " $only " == *" $1 "* ]]; }
titled() { printf '\n== %s\n' "$*"; }

if wants tests && [[ $scale == full ]]; then
    titled "tests that need an accelerator"
    make test-gpu GPU_PYTHON="$python"
fi

if wants steps; then
    titled "training steps and forward passes: hours of audio a second, memory, MFU"
    "$python" -m benchmarks.gpu --device "$device" --scale "$scale" --out "$out/steps.json" ${SETTINGS:+--settings $SETTINGS}
fi

# At GPU scale the recipes get a wider and deeper teacher, larger batches and bf16.
large=(--teacher.model.width 384 --teacher.model.num_layers 12 --teacher.model.num_heads 6
    --teacher.batch_seconds 320 --teacher.optimisation.precision bf16)
# A toy hears too little to measure a delay by.
small=(--teacher.model.width 32 --teacher.model.num_layers 1 --teacher.optimisation.steps 4
    --student.model.width 32 --student.model.num_layers 1 --student.optimisation.steps 4
    --student.unlabelled_losses.soft_labels.loss.delay_frames 4
    --prepare.labelled_minutes 0.5 --prepare.unlabelled_minutes 0.5 --prepare.dev_minutes 0.2 --prepare.test_minutes 0.2)
if wants recipes; then
    titled "recipes/mini, every stage"
    if [[ $scale == full ]]; then sizes=("${large[@]}"); else sizes=("${small[@]}"); fi
    time "$python" -m kdasr.cli run recipes/mini --work-dir "$out/mini" "${sizes[@]}"
    if [[ -n ${FSDD:-} && $scale == full ]]; then
        titled "recipes/fsdd, every stage"
        time "$python" -m kdasr.cli run recipes/fsdd --corpus "$FSDD" --work-dir "$out/fsdd" "${large[@]}"
    fi
fi

if wants label; then
    titled "labelling against the bare forward pass (overhead_wall_percent; at most 10 is wanted)"
    "$python" -m benchmarks.labelling --work-dir "$out/mini" --device "$device" --shards 2 --rounds 3
fi

if wants loader; then
    titled "the input pipeline against the step"
    "$python" -m benchmarks.loader --shards "$out/mini/shards/labelled" --model "$out/mini/teacher" \
        --device "$device" --precision bf16 --batches "$([[ $scale == full ]] && echo 60 || echo 4)" --out "$out/loader.json"
fi
titled "done; results are in $out"
