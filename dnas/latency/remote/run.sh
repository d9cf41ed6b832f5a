#!/bin/sh
# Measures the operators of this folder with trtexec (TensorRT), on a device without Python.
# Finished operators are skipped: after an interruption, run it again. Arguments are passed on to trtexec.
set -eu
cd "$(dirname "$0")"
command -v trtexec >/dev/null || { echo "run.sh: trtexec is not installed or not in PATH" >&2; exit 2; }
mkdir -p trtexec
trtexec --help 2>&1 | sed -n 's/.*\(TensorRT v[0-9]*\).*/\1/p' | head -n 1 >trtexec/version.txt || true
if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader,nounits | head -n 1 >trtexec/device.txt
elif [ -r /proc/device-tree/model ]; then
    tr -d '\0' </proc/device-tree/model >trtexec/device.txt
fi
for model in operators/*.onnx; do
    name=$(basename "$model" .onnx)
    [ -s "trtexec/$name.json" ] && continue
    echo "$name"
    trtexec --onnx="$model" --stronglyTyped --noDataTransfers --useCudaGraph --warmUp=100 --duration=1 \
        --exportTimes="trtexec/$name.part" "$@" >"trtexec/$name.log" 2>&1 ||
        { echo "run.sh: $name failed, see trtexec/$name.log" >&2; exit 1; }
    mv "trtexec/$name.part" "trtexec/$name.json"
done
echo "finished: copy this folder back and run dnas latency collect"
