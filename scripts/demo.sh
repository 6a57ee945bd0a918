#!/usr/bin/env bash
# The main job on real photographs, from nothing: an environment, images, extract, inspect.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh -e ".[demo]"

mkdir -p demo
"$py" scripts/photographs.py demo/images

echo "+ vggfeat extract demo/images --layers conv5_3,fc7 --out demo/feats.h5"
status=0
"$py" -m vggfeat extract demo/images --layers conv5_3,fc7 --out demo/feats.h5 || status=$?
if [ "$status" = 5 ]; then # an earlier demo had to make the file with random weights
    status=0
    "$py" -m vggfeat extract demo/images --layers conv5_3,fc7 --fresh --out demo/feats.h5 || status=$?
fi
if [ "$status" = 3 ]; then
    echo
    echo "ImageNet weights cannot be had here: going on with RANDOM weights, to show the way of the data."
    echo "+ vggfeat extract demo/images --layers conv5_3,fc7 --weights random:0 --out demo/feats.h5"
    "$py" -m vggfeat extract demo/images --layers conv5_3,fc7 --weights random:0 --out demo/feats.h5
elif [ "$status" != 0 ]; then
    exit "$status"
fi

echo
echo "+ vggfeat inspect demo/feats.h5"
"$py" -m vggfeat inspect demo/feats.h5
