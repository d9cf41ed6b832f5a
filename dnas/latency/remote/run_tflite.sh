#!/bin/sh
# Measures the operators of this folder with TensorFlow Lite's benchmark_model, on a device without Python such as a phone:
# adb push FOLDER /data/local/tmp/bundle; adb push benchmark_model /data/local/tmp; adb shell sh /data/local/tmp/bundle/run.sh
# THREADS sets the CPU threads, 1 by default; BENCHMARK_MODEL is the program, if it is neither in PATH nor beside the folder.
# Finished measurements are skipped: after an interruption, run it again. Arguments are passed on to benchmark_model.
set -eu
cd "$(dirname "$0")"
tool=${BENCHMARK_MODEL:-benchmark_model}
if ! command -v "$tool" >/dev/null; then
    [ -x ../benchmark_model ] && tool=../benchmark_model ||
        { echo "run.sh: benchmark_model is not in PATH; give BENCHMARK_MODEL=/path/of/it" >&2; exit 2; }
fi
mkdir -p benchmark_model
settings="threads=${THREADS:-1} arguments=$*"
if [ -s benchmark_model/settings.txt ] && [ "$(cat benchmark_model/settings.txt)" != "$settings" ]; then
    echo "run.sh: earlier measurements have other settings; delete the folder benchmark_model or repeat them" >&2
    exit 2
fi
echo "$settings" >benchmark_model/settings.txt
if command -v getprop >/dev/null; then
    echo "$(getprop ro.product.manufacturer) $(getprop ro.product.model)" >benchmark_model/device.txt
elif [ -r /proc/device-tree/model ]; then
    tr -d '\0' </proc/device-tree/model >benchmark_model/device.txt
else
    sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1 >benchmark_model/device.txt
fi
for round in 1 2 3 4 5; do
    for model in operators/*.tflite; do
        name=$(basename "$model" .tflite).$round
        [ -s "benchmark_model/$name.txt" ] && continue
        echo "round $round of 5: $model"
        "$tool" --graph="$model" --num_threads="${THREADS:-1}" --warmup_runs=5 --min_secs=0.2 "$@" \
            >"benchmark_model/part" 2>&1 ||
            { cat benchmark_model/part >&2; echo "run.sh: $name failed" >&2; exit 1; }
        mv benchmark_model/part "benchmark_model/$name.txt"
    done
done
echo "finished: copy this folder back and run dnas latency collect"
