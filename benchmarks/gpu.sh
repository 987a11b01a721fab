#!/usr/bin/env bash
# Everything there is to measure on an accelerator, in one go:
#   benchmarks/gpu.sh                 on a GPU, half an hour or more; results in runs/gpu
#   benchmarks/gpu.sh tiny            the same on a CPU and very small, to see that it runs
# PYTHON   the interpreter whose torch sees the GPU (python3)
# OUT      where results go (runs/gpu)
# FSDD     a checkout of the Free Spoken Digit Dataset; without it that recipe is left out
# ONLY     some of: tests steps lengths recipes label loader (all)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scale=${1:-full}
python=${PYTHON:-python3}
out=${OUT:-runs/gpu}
only=${ONLY:-tests steps lengths recipes label loader}
case $scale in
    full) device=cuda ;;
    tiny) device=cpu ;;
    *) echo "usage: benchmarks/gpu.sh [full|tiny]" >&2 && exit 2 ;;
esac

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296

# A machine with a GPU often has torch and not the rest, of which nothing needs a compiler.
missing=$("$python" - <<'PY'
from importlib.util import find_spec
packages = {"torch": "torch", "torchaudio": "torchaudio", "speechbrain": "speechbrain", "scipy": "scipy",
            "tqdm": "tqdm", "hyperpyyaml": "hyperpyyaml",
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
    echo "$python lacks these packages: $missing" >&2
    # By pyproject.toml's bounds and not by constraints.txt, which would bring another torch.
    echo "Install them without changing its torch:" >&2
    echo "    $python -m pip install -e '.[synth,export,report]' pytest pytest-timeout hypothesis" >&2
    echo "For a machine without network access, see recipes/RESULTS-gpu.md." >&2
    exit 2
fi

mkdir -p "$out"
"$python" -c "import torch; print('torch', torch.__version__, 'on', torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU')"
failed=()
# NAME TITLE COMMAND…: one part of ONLY. If it fails, the others are measured all the same.
part() {
    [[ " $only " == *" $1 "* ]] || return 0
    printf '\n== %s\n' "$2"
    time "${@:3}" || failed+=("$1")
}

[[ $scale == tiny ]] || part tests "tests that need an accelerator" make test-gpu GPU_PYTHON="$python"

part steps "training steps and forward passes: hours of audio a second, memory, MFU" \
    "$python" -m benchmarks.gpu --device "$device" --scale "$scale" --kernels 20 --out "$out/steps.json" \
        ${SETTINGS:+--settings $SETTINGS}

steps=25 small=()
[[ $scale == full ]] || steps=1 small=(--set model.width=48 model.num_layers=1 batch_seconds=20)
for recipe in student teacher; do
    part lengths "steps of recipes/librispeech/100h/$recipe.yaml: batches of many lengths compared with one length" \
        "$python" -m benchmarks.recipe_steps "recipes/librispeech/100h/$recipe.yaml" --device "$device" \
        --steps "$steps" --out "$out/lengths-$recipe.json" "${small[@]}"
done

if [[ $scale == full ]]; then
    # At GPU scale the recipes get a wider and deeper teacher and students, larger batches and bf16.
    sizes=(--teacher.model.width 384 --teacher.model.num_layers 12 --teacher.model.num_heads 6
        --teacher.batch_seconds 320 --teacher.optimisation.precision bf16 --teacher.optimisation.steps 500
        --student.model.width 256 --student.model.num_layers 8 --student.model.num_heads 4
        --student.batch_seconds 320 --student.optimisation.precision bf16 --student.optimisation.steps 500)
    minutes=130 label_with=(--untrained teacher_600m --batch-seconds 600 --decoders 1 2 4 8 --workers 2 3 4)
else
    # Without the gate for int8, whose twin of so little training errs otherwise.
    sizes=(--export.max_wer_rise 1000 --teacher.model.width 32 --teacher.model.num_layers 1 --teacher.optimisation.steps 4
        --student.model.width 32 --student.model.num_layers 1 --student.optimisation.steps 4
        --mwer.optimisation.steps 4
        --prepare.labelled_minutes 0.5 --prepare.unlabelled_minutes 0.5 --prepare.dev_minutes 0.2 --prepare.test_minutes 0.2)
    minutes=1 label_with=()
fi
part recipes "recipes/mini, every stage" "$python" -m kdasr.cli run recipes/mini --work-dir "$out/mini" "${sizes[@]}"
if [[ -n ${FSDD:-} && $scale == full ]]; then
    part recipes "recipes/fsdd, every stage" \
        "$python" -m kdasr.cli run recipes/fsdd --corpus "$FSDD" --work-dir "$out/fsdd" "${sizes[@]}"
fi

# Shards of an hour, as of a real corpus: between two, an accelerator has nothing to do. Of utterances of 12 s
# where there are recordings to join, and else of 2 s, which cost the CPU about twice as much.
label() {
    local corpus=(synth --max_shard_utterances 2000)
    if [[ -n ${FSDD:-} && $scale == full ]]; then
        corpus=(fsdd --corpus "$FSDD" --digits '[16, 24]' --max_shard_utterances 320)
    fi
    "$python" -m kdasr.cli prepare "${corpus[@]}" --out "$out/long" --labelled_minutes 1 --dev_minutes 1 \
        --test_minutes 1 --unlabelled_minutes "$minutes" &&
        "$python" -m benchmarks.labelling --work-dir "$out/mini" --audio "$out/long/unlabelled" \
            "${label_with[@]}" --device "$device" --precision bfloat16 --rounds 3
}
part label "labelling compared with the bare forward pass (overhead_wall_percent should be at most 10)" label

part loader "the input pipeline compared with the training step" \
    "$python" -m benchmarks.loader --shards "$out/mini/shards/labelled" --model "$out/mini/teacher" \
    --device "$device" --precision bf16 --batches "$([[ $scale == full ]] && echo 60 || echo 4)" \
    --batch-seconds "$([[ $scale == full ]] && echo 320 || echo 20)" --workers 0 1 2 4 --out "$out/loader.json"

printf '\n== results are in %s\n' "$out"
if ((${#failed[@]} > 0)); then
    echo "failed (see above): ${failed[*]}" >&2
    exit 1
fi
