#!/usr/bin/env bash
# What is to be done on a GPU, in this order, within a time: the tests marked cuda, the speed of a step, a study.
#   tests/gpu.sh IMAGENETTE OUT [SECONDS] [PROCESSES]
# It needs python and the sesemi commands on PATH, and nothing from a network. ARCHS, SIZE, BS and STUDY change what is measured.
set -uo pipefail
data=${1:?give the folder of Imagenette} out=${2:?give a folder for the results} seconds=${3:-3600} processes=${4:-6} here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) began=$SECONDS
mkdir -p "$out"
(cd "$here" && python -m pytest -q -m cuda -p no:cacheprovider tests/test_{callback,plans,speed,store,workflows}.py) | tee "$out/tests.txt"
for arch in ${ARCHS:-resnet50 resnet18}; do
  sesemi-bench speed --path "$data" --arch "$arch" --size "${SIZE:-128}" --bs "${BS:-32}" --no-files --seconds .8 --out "$out/gpu-$arch-${SIZE:-128}px.json" || exit
done
# Several processes share the GPU: one alone waits for Python most of the time. A run that the time ends goes on with the same command
export OMP_NUM_THREADS=1
left=$((seconds-SECONDS+began))
[ "$left" -gt 0 ] || { echo "the $seconds seconds are over: no time is left for the study"; exit 1; }
for _ in $(seq "$processes"); do
  timeout "$left" sesemi-study run "${STUDY:-$here/nbs/experiments/robust128.toml}" --path "$data" --out "$out/study" --no-bar &
  sleep .3 # the first one builds the store
done
wait
