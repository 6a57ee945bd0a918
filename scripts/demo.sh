#!/usr/bin/env bash
# The main job on real photographs, from nothing: an environment, images, extract, inspect, explore.
# The commands of README.md and of docs/ run in the folder demo/ that this makes.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh -e ".[demo,plot]"
mkdir -p demo
"$py" scripts/photographs.py demo

program=$(cd "$(dirname "$py")" && pwd)/vggfeat
cd demo
show() {
    echo
    echo "+ vggfeat $*"
    "$program" "$@"
}
extract() { show extract images --layers conv1_2,conv3_4,conv5_4,fc7 --out feats.h5 "$@"; }

status=0
extract || status=$?
if [ "$status" = 5 ]; then # an earlier demo had to make the file with random weights
    status=0
    extract --fresh || status=$?
fi
if [ "$status" = 3 ]; then
    status=0
    echo
    echo "ImageNet weights cannot be had here. The demo uses RANDOM weights, whose features mean nothing."
    echo "Give --weights random:0 to the other commands that need a network, too."
    extract --weights random:0 || status=$?
fi
[ "$status" = 0 ] || exit "$status"

show inspect feats.h5
show explore feats.h5 --out explore.html
echo
echo "Open demo/explore.html in a browser. To go on: . $VENV/bin/activate && cd demo"
