#!/bin/sh
# The first session on a GPU: five parts of less than ten minutes each.
#
#   scripts/first_gpu.sh [--dry-run] [--out DIR] [PART...]
#
#   smoke        benchmark, fused kernel in all types and layouts, retraining in three precisions, a search that is
#                resumed, losses against the CPU's
#   search_step  time, launches, busy share and synchronisations of a search step
#   latency      latency tables in eager mode, by graphs of one call and of many, checked against whole networks
#   fractional   warps, stages and blocks of the fractional convolution against cuDNN
#   loader       images per second
#
# A part writes DIR/PART.jsonl (default: docs/first_gpu), a line for each step. The same call continues where a session
# ended: finished steps are skipped. A part that fails does not stop the others; the status is 1 in the end.
# --dry-run rehearses all of it on the CPU at toy size. PYTHON names the interpreter.
set -u
usage() {
    sed -n 's/^# \{0,1\}//; 2,/^set/p' "$0" | sed '/^set/d'
}
out='' dry='' parts=''
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --dry-run) dry=--dry-run ;;
    --out)
        [ $# -gt 1 ] || { echo 'first_gpu: --out needs a folder' >&2 && exit 2; }
        mkdir -p "$2" && out=$(cd "$2" && pwd) || exit 2
        shift
        ;;
    smoke | search_step | latency | fractional | loader) parts="$parts $1" ;;
    *) echo "first_gpu: $1: expected smoke, search_step, latency, fractional, loader, --out or --dry-run" >&2 && exit 2 ;;
    esac
    shift
done
cd "$(dirname "$0")/.." || exit 2
failed=''
for part in ${parts:-smoke search_step latency fractional loader}; do
    timeout 590 "${PYTHON:-python}" -m scripts.first_gpu "$part" ${out:+--out "$out"} $dry
    case $? in
    0) ;;
    2) exit 2 ;; # nothing can run
    124) failed="$failed $part" && echo "first_gpu: $part: not finished in 590 s; call it again to continue" >&2 ;;
    *) failed="$failed $part" ;;
    esac
done
if [ -n "$failed" ]; then
    echo "first_gpu: failed or not finished:$failed" >&2
    exit 1
fi
if [ -z "$dry" ] && [ -z "$out" ]; then
    "${PYTHON:-python}" -m scripts.first_gpu.tables
fi
