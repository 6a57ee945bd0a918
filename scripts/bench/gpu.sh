#!/usr/bin/env bash
# All that needs an NVIDIA GPU, in one run of under nine minutes: tests, extracts of many images in
# several settings, a kill and a resume, decoding by Pillow, torchvision and nvJPEG, the bare network,
# and a script as people write it.
#
# Needs a python3 (PYTHON) with torch, torchvision, h5py, typer, tqdm, pillow and pytest;
# installs nothing and asks no network. Results go to stdout as Markdown. A step that fails does not
# end the run; the exit status says how many failed. IMAGES, SMALL, LIMIT, ROUNDS and REPEATS change
# how much is done.
set -u
cd "$(dirname "$0")/../.." || exit 2
unset PYTHONDONTWRITEBYTECODE
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1

python=${PYTHON:-python3}
images=${IMAGES:-20000}
small=${SMALL:-2000}
limit=${LIMIT:-2000}
rounds=${ROUNDS:-3}
repeats=${REPEATS:-5}
seconds_in_all=${SECONDS_IN_ALL:-520}
failed=()
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# step NAME SECONDS COMMAND...: runs it for that long at most, and never beyond the end of all.
step() {
    local name=$1 most=$2 left=$((seconds_in_all - SECONDS)) began=$SECONDS status=0
    shift 2
    printf '\n## %s\n\n' "$name"
    if [ "$left" -lt 5 ]; then
        echo "left out: no time"
        failed+=("$name")
        return
    fi
    timeout -k 5 "$((most < left ? most : left))" "$@" 2>&1 || status=$?
    [ "$status" = 0 ] || failed+=("$name")
    printf '\n(%s s, exit %s)\n' "$((SECONDS - began))" "$status"
}

versions() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv,noheader
    local status=$?
    "$python" -c 'import os, sys, torch, torchvision, h5py, PIL, numpy
cores = len(os.sched_getaffinity(0))
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
      f"torchvision {torchvision.__version__}, h5py {h5py.__version__}, "
      f"Pillow {PIL.__version__}, numpy {numpy.__version__}, {cores} cores")' || status=1
    return "$status"
}

# extract FOLDER OUT OPTION...: the summary as JSON in OUT.json.
extract() {
    local folder=$1 out=$2
    shift 2
    "$python" -m vggfeat extract "$folder" --out "$out" --layers conv5_3,fc7 --weights random:0 \
        --verbose --json "$@" >"$out.json"
}

row() {
    echo "| setting | done | workers | precision | images/s | seconds in all | seconds a stage |"
    echo "|---|---|---|---|---|---|---|"
    "$python" scripts/bench/check.py row "$@"
}

# setting LABEL FOLDER OUT OPTION...
setting() {
    local label=$1 folder=$2 out=$3
    shift 3
    extract "$folder" "$out" "$@" && row "$label" "$out.json"
}

# Kills an extract in its middle, as the system would; the same command then does what is left.
kill_and_resume() {
    local out=$work/killed.h5 pid waited=0
    "$python" -m vggfeat extract "$work/images" --out "$out" --layers conv5_3,fc7 \
        --weights random:0 --checkpoint-seconds 0.5 --quiet &
    pid=$!
    until some_done "$out"; do
        sleep 0.3
        waited=$((waited + 1))
        if [ "$waited" -gt 200 ] || ! kill -0 "$pid" 2>/dev/null; then
            kill -9 "$pid" 2>/dev/null
            echo "nothing to kill: it has ended, or has no row done in a minute"
            return 1
        fi
    done
    kill -9 "$pid"
    wait "$pid" 2>/dev/null
    printf 'killed with '
    if "$python" scripts/bench/check.py done "$out"; then
        echo "nothing is left to resume: more IMAGES are needed"
        return 1
    fi
    extract "$work/images" "$out" && row resumed "$out.json" &&
        "$python" scripts/bench/check.py done "$out" &&
        "$python" scripts/bench/check.py cosine "$work/auto.h5" "$out"
}

some_done() {
    [ -f "$1" ] && ! "$python" scripts/bench/check.py done "$1" 2>/dev/null | grep -q '^0 of'
}

export -f versions extract row setting kill_and_resume some_done
export python work

step "Machine" 30 bash -c versions
step "Doctor" 60 "$python" -m vggfeat doctor
step "Tests on the GPU" 200 "$python" -m pytest tests/gpu -q -W default -p no:cacheprovider
step "Images" 60 "$python" scripts/bench/make_images.py "$images" "$work/images"
step "Fewer images" 30 "$python" scripts/bench/make_images.py "$small" "$work/small"
step "Extract, workers auto" 90 bash -c 'setting auto "$work/images" "$work/auto.h5"'
step "Extract, 8 workers" 90 \
    bash -c 'setting "8 workers" "$work/images" "$work/workers8.h5" --workers 8'
step "Extract, 16 workers" 90 \
    bash -c 'setting "16 workers" "$work/images" "$work/workers16.h5" --workers 16'
step "Extract, float32" 60 \
    bash -c 'setting float32 "$work/small" "$work/float32.h5" --precision float32 --dtype float32'
step "Decoding by decoder" 90 "$python" scripts/bench/gpu_decode.py "$work/small" --seconds 1
step "Extract, decode gpu" 90 \
    bash -c 'setting "decode gpu" "$work/images" "$work/gpu.h5" --decode gpu'
step "Extract, decode pillow" 90 \
    bash -c 'setting "decode pillow" "$work/images" "$work/pillow.h5" --decode pillow'
step "Half precision against float32" 30 \
    "$python" scripts/bench/check.py cosine "$work/float32.h5" "$work/auto.h5"
step "Two networks on one GPU" 45 \
    bash -c 'setting "two networks" "$work/small" "$work/two.h5" --device cuda:0,cuda:0'
step "Two networks against one" 30 \
    "$python" scripts/bench/check.py cosine "$work/two.h5" "$work/auto.h5"
step "What the machine can do" 60 "$python" -m vggfeat bench "$work/small" --folder "$work"
step "Kill and resume" 90 bash -c kill_and_resume
step "The bare network" 90 "$python" scripts/bench/forward.py --repeats "$repeats"
step "Against a good script" 150 "$python" scripts/bench/extract.py "$work/images" \
    --peers good_script --limit "$limit" --rounds "$rounds"

printf '\n## Result\n\n%s s; ' "$SECONDS"
if [ "${#failed[@]}" -gt 0 ]; then
    printf 'failed: %s\n' "$(IFS=,; echo "${failed[*]}")"
else
    echo "all steps passed"
fi
exit "${#failed[@]}"
