#!/usr/bin/env bash
# All that needs an NVIDIA GPU, in one run of under nine minutes: tests, extracts of many images in
# several settings, a kill and a resume to the same bytes, decoding by Pillow, torchvision and
# nvJPEG, the bare network, and a script as people write it. Its last table holds what was predicted
# beside what was measured.
#
# Needs a python3 (PYTHON) with torch, torchvision, h5py, typer, tqdm, pillow and pytest; installs
# nothing and asks no network. Results go to stdout as Markdown, logs and JSON to the folder OUT.
# Photographs in shared/photos are taken where they are. The most important steps come first; one
# that fails does not end the run, and the exit status says how many failed.
#
# DEVICE=cpu tries every line of it without a GPU; tests/system/test_gpu_machine.py does so with
# fewer and smaller images.
set -u
cd "$(dirname "$0")/../.." || exit 2
unset PYTHONDONTWRITEBYTECODE
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1

python=${PYTHON:-python3}
device=${DEVICE:-cuda:0}
images=${IMAGES:-60000} # hard links; few would measure how cuDNN starts
some=${SOME:-12000}     # for settings that are only compared
small=${SMALL:-2000}
distinct=${DISTINCT:-500}
layers=${LAYERS:-conv5_3,fc7}
common="--device $device --layers $layers --model ${MODEL:-vgg19} --size ${SIZE:-224}"
common+=" --weights random:0"
gpu_decoder=gpu
[ "$device" != cpu ] || gpu_decoder=torchvision
seconds_in_all=${SECONDS_IN_ALL:-530}
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
failed=()
number=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# step NAME SECONDS COMMAND...: runs it for that long at most, and never beyond the end of all.
step() {
    local name=$1 most=$(($2 * ${PATIENCE:-1})) left=$((seconds_in_all - SECONDS)) began=$SECONDS status=0 log
    shift 2
    number=$((number + 1))
    log="$out/$(printf '%02d' "$number")-${name//[^A-Za-z0-9]/-}.log"
    printf '\n## %s\n\n' "$name"
    if [ "$left" -lt 5 ]; then
        echo "left out: no time"
        failed+=("$name")
        return
    fi
    # Not through a pipe: what a command that is ended leaves behind would keep it open.
    timeout -k 5 "$((most < left ? most : left))" "$@" >"$log" 2>&1 || status=$?
    cat "$log"
    [ "$status" = 0 ] || failed+=("$name")
    printf '\n(%s s, exit %s)\n' "$((SECONDS - began))" "$status"
}

smi() {
    if [ "$device" = cpu ]; then
        echo "no nvidia-smi $*"
    else
        nvidia-smi "$@"
    fi
}

machine() {
    local status=0
    smi --query-gpu=name,driver_version,memory.total,power.limit,persistence_mode --format=csv || status=1
    smi --query-gpu=clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu --format=csv
    lscpu | grep -E '^(Model name|CPU\(s\)|Thread|Core|Socket|NUMA node\(s\)|CPU max MHz|L3)'
    free -g
    df -hT "$work" "$out"
    cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max 2>/dev/null
    return "$status"
}

first_import() {
    "$python" - "$device" <<'END'
import os, sys, time
started = time.perf_counter()
import torch
imported = time.perf_counter()
torch.zeros(1, device=sys.argv[1]).add(1)
begun = time.perf_counter()
print(f"torch imported in {imported - started:.1f} s, device begun in {begun - imported:.1f} s")
import h5py, numpy, PIL, torchvision
cores = len(os.sched_getaffinity(0))
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
      f"cuDNN {torch.backends.cudnn.version()}, torchvision {torchvision.__version__}, "
      f"h5py {h5py.__version__}, Pillow {PIL.__version__}, numpy {numpy.__version__}, {cores} cores")
END
}

vggfeat() {
    if [ -n "${VGGFEAT:-}" ]; then
        command "$VGGFEAT" "$@"
    else
        "$python" -m vggfeat "$@"
    fi
}

make_images() {
    local folder
    for folder in "images $images" "some $some" "small $small"; do
        # shellcheck disable=SC2086 # two words
        set -- $folder
        "$python" scripts/bench/make_images.py "$2" "$work/$1" --distinct "$distinct" || return
    done
    ls -d shared/photos 2>/dev/null || echo "no shared/photos: synthetic images in their place"
}

# extract FOLDER NAME OPTION...: a cache in $work/NAME.h5, its summary in $out/NAME.json.
extract() {
    local folder=$1 name=$2
    shift 2
    # shellcheck disable=SC2086 # options of one word each
    vggfeat extract "$folder" --out "$work/$name.h5" $common --verbose --json "$@" >"$out/$name.json"
}

row() {
    echo "| setting | done | workers | precision | images/s | seconds in all | seconds a stage |"
    echo "|---|---|---|---|---|---|---|"
    "$python" scripts/bench/check.py row "$1" "$out/$1.json"
}

# setting FOLDER NAME OPTION...
setting() {
    extract "$@" && row "$2"
}

# The same, and the cache is not kept.
measure() {
    local status=0
    setting "$@" || status=$?
    rm -f "$work/$2.h5"*
    return "$status"
}

# Kills an extract in its middle, as the system would; the same command then does what is left.
kill_and_resume() {
    # shellcheck disable=SC2086 # options of one word each
    "$python" scripts/bench/killed.py "$work/images" "$work/resumed.h5" $common
    local status=$?
    if [ "$status" != 137 ]; then
        echo "ended with $status, expected 137 for a kill"
        return 1
    fi
    printf 'killed with '
    if "$python" scripts/bench/check.py done "$work/resumed.h5"; then
        echo "nothing is left to resume"
        return 1
    fi
    setting "$work/images" resumed &&
        "$python" scripts/bench/check.py done "$work/resumed.h5" &&
        "$python" scripts/bench/check.py same "$work/auto.h5" "$work/resumed.h5"
}

half_precision() {
    local photos=shared/photos
    [ -d "$photos" ] || photos=$work/small
    setting "$photos" half --dtype float32 &&
        setting "$photos" float32 --precision float32 --dtype float32 &&
        "$python" scripts/bench/check.py cosine "$work/float32.h5" "$work/half.h5"
}

two_networks() {
    measure "$work/some" one-network --batch-size 256 &&
        setting "$work/some" two-networks --batch-size 256 --device "$device,$device" &&
        "$python" scripts/bench/check.py cosine "$work/two-networks.h5" "$work/auto.h5"
}

export -f smi machine first_import vggfeat make_images extract row setting measure
export -f kill_and_resume half_precision two_networks
export python device work out common images some small distinct

step "Machine" 30 bash -c machine
step "First import of torch" 90 bash -c first_import
step "Doctor" 30 "$python" -m vggfeat doctor
step "Images" 30 bash -c make_images
# shellcheck disable=SC2086 # may be several files
VGGFEAT_TEST_DEVICE=$device step "Tests on the GPU" 180 \
    "$python" -m pytest ${TESTS:-tests/gpu} -q -rfEs -W default -p no:cacheprovider --durations=12
step "Extract, decode auto" 60 bash -c 'setting "$work/images" auto'
step "Extract, decode gpu" 45 bash -c "measure \"\$work/images\" decode-gpu --decode $gpu_decoder"
step "Kill and resume" 60 bash -c kill_and_resume
# shellcheck disable=SC2086 # options of one word each
step "The bare network" 90 "$python" scripts/bench/forward.py --device "$device" \
    --repeats "${REPEATS:-2}" ${FORWARD:-}
step "Decoding by decoder" 60 "$python" scripts/bench/gpu_decode.py "$work/small" \
    --device "$device" --seconds "${DECODE_SECONDS:-0.7}" --batch-size "${DECODE_BATCH:-256}"
step "Extract, no checkpoint before the end" 45 \
    bash -c 'measure "$work/images" no-checkpoint --checkpoint-seconds 3600'
step "Extract, decode pillow" 45 bash -c 'measure "$work/some" decode-pillow --decode pillow'
for count in ${WORKERS:-8 12 15 20}; do
    step "Extract, $count workers" 30 \
        bash -c "measure \"\$work/some\" workers-$count --workers $count"
done
step "Half precision against float32" 45 bash -c half_precision
# shellcheck disable=SC2086 # options of one word each
step "What the machine can do" 45 bash -c \
    "vggfeat bench \"\$work/small\" --folder \"\$work\" --device $device --layers $layers ${BENCH:---seconds 15}"
step "Two networks on one GPU" 45 bash -c two_networks
step "Against a good script" 60 "$python" scripts/bench/extract.py "$work/images" \
    --peers good_script --limit "${LIMIT:-1000}" --rounds "${ROUNDS:-1}" \
    --layers "${PEER_LAYERS:-conv5_3,fc7}"

printf '\n## Predictions beside what was measured\n\n'
"$python" scripts/bench/predictions.py "$out" | tee "$out/predictions.md"

printf '\n## Result\n\n%s s, logs and JSON in %s; ' "$SECONDS" "$out"
if [ "${#failed[@]}" -gt 0 ]; then
    printf 'failed: %s\n' "$(IFS=,; echo "${failed[*]}")"
else
    echo "all steps passed"
fi
exit "${#failed[@]}"
