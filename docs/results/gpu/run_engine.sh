#!/usr/bin/env bash
# Measures one engine's KV-cache settings on a GPU with kvload's own commands: speed under random weights of an 8B shape,
# lengths and quality under the probe model.
#
#   docs/results/gpu/run_engine.sh ENGINE OUT TRACE SPEED_MODEL
#
#   ENGINE       vllm or sglang, importable by $ENGINE_PYTHON (default: python3) with $ENGINE_ENV added
#   OUT          folder for run folders and reports
#   TRACE        a trace of lengths, such as azure_2023_conv.csv
#   SPEED_MODEL  folder with the configuration and tokenizer of a model; its weights are made up
#
# Variables: METHODS ("none fp8-e4m3 ..."), RATES ("2 6"), REQUESTS (requests of a run), PROBE_TRACE (a scored trace in
# kvload's format; left out where unset), ENGINE_ENV ("NAME=VALUE ..." for the engine alone), KVLOAD (the command).
set -uo pipefail

engine=$1 out=$2 trace=$3 speed_model=$4
python=${ENGINE_PYTHON:-python3}
kvload=${KVLOAD:-kvload}
rates=${RATES:-2 6}
requests=${REQUESTS:-150}
failures=0

case $engine in
vllm)
    methods=${METHODS:-none fp8-e4m3 int8-per-token-head turboquant-k8v4 turboquant-4bit}
    speed_args=(--gpu-memory-utilization 0.5 -cc '{"mode":0,"cudagraph_mode":"FULL_DECODE_ONLY"}')
    probe_args=(--gpu-memory-utilization 0.2 --enforce-eager)
    ;;
sglang)
    methods=${METHODS:-none fp8-e4m3}
    speed_args=(--mem-fraction-static 0.5 --sampling-backend pytorch --cuda-graph-max-bs 64)
    probe_args=(--mem-fraction-static 0.2 --sampling-backend pytorch --disable-cuda-graph)
    ;;
*)
    echo "error: ENGINE is vllm or sglang, not '$engine'" >&2
    exit 2
    ;;
esac

env_args=()
for pair in ${ENGINE_ENV:-}; do
    env_args+=(--env "$pair")
done

mkdir -p "$out"
# Nothing of a half-finished run may hold the GPU.
trap '$kvload stop --all' EXIT

step() { # a step that fails is counted, and the others go on
    echo "+ $*" | tee -a "$out/commands.txt"
    "$@" || { failures=$((failures + 1)); echo "FAILED ($?): $*" | tee -a "$out/failures.txt"; return 1; }
}

for method in $methods; do
    name=$engine-$method
    if step $kvload launch "$speed_model" --engine "$engine" --python "$python" "${env_args[@]}" --method "$method" \
        --name "$name" --load-format dummy --max-model-len 16384 --verify -- "${speed_args[@]}"; then
        $kvload status --json >"$out/$name-server.json"
        for rate in $rates; do
            step $kvload replay "$trace" --server "$name" --mode forced --rate "$rate" --limit "$requests" \
                --num-warmups 4 --too-long drop --slo ttft=1s,tpot=50ms --out "$out/$name-rate$rate" --quiet
        done
    fi
    $kvload logs "$name" --lines 0 >"$out/$name.log" 2>/dev/null
    $kvload stop "$name" 2>/dev/null
    if [ -n "${PROBE_TRACE:-}" ]; then
        if step $kvload launch --engine "$engine" --python "$python" "${env_args[@]}" --method "$method" \
            --name "$name-probe" --verify -- "${probe_args[@]}"; then
            step $kvload replay "$PROBE_TRACE" --server "$name-probe" --mode free --out "$out/$name-probe" --quiet
        fi
        $kvload logs "$name-probe" --lines 0 >"$out/$name-probe.log" 2>/dev/null
        $kvload stop "$name-probe" 2>/dev/null
    fi
done

echo "$failures steps failed"
[ "$failures" -eq 0 ]
