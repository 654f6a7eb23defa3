#!/usr/bin/env bash
# Measures one engine's KV-cache settings on a GPU with kvload's own commands: speed under random weights of an 8B shape,
# lengths and quality under the probe model.
#
#   docs/results/gpu/run_engine.sh ENGINE OUT TRACE SPEED_MODEL
#
#   ENGINE       vllm or sglang, importable by $ENGINE_PYTHON (default: python3)
#   OUT          folder for run folders and reports
#   TRACE        a trace of lengths, such as azure_2023_conv.csv
#   SPEED_MODEL  folder with the configuration and tokenizer of a model; its weights are made up
#
# All servers share one GPU and are started first, since starting takes longest; they are then replayed against one at a
# time, while the others idle. Each has a cache of $KV_MEMORY.
#
# Variables: METHODS ("none fp8-e4m3 ..."), PROBE_METHODS (the same by default), STAGES ("start speed probe stop"), RATES ("4:120 16:320": requests a second and how many), KV_MEMORY (8GiB),
# SHARE (of the GPU's memory for one speed server), SPEED_ARGS and PROBE_ARGS (the engine's arguments, instead of those
# below), PROBE_TRACE (a scored trace in kvload's format; without it the probe is left out), KVLOAD (the command).
set -uo pipefail

engine=$1 out=$2 trace=$3 speed_model=$4
python=${ENGINE_PYTHON:-python3}
kvload=${KVLOAD:-kvload}
stages=" ${STAGES:-start speed probe stop} "
rates=${RATES:-4:120 16:320}
kv_memory=${KV_MEMORY:-8GiB}
failures=0

case $engine in
vllm)
    methods=${METHODS:-none fp8-e4m3 int8-per-token-head turboquant-k8v4 turboquant-4bit}
    speed_args=(--gpu-memory-utilization "${SHARE:-0.18}" -cc '{"mode":0,"cudagraph_mode":"FULL_DECODE_ONLY"}')
    probe_args=(--gpu-memory-utilization 0.04 --enforce-eager)
    ;;
sglang)
    methods=${METHODS:-none fp8-e4m3}
    speed_args=(--mem-fraction-static "${SHARE:-0.5}" --sampling-backend pytorch --cuda-graph-max-bs 64)
    probe_args=(--mem-fraction-static 0.5 --sampling-backend pytorch --disable-cuda-graph)
    ;;
*)
    echo "error: ENGINE is vllm or sglang, not '$engine'" >&2
    exit 2
    ;;
esac

[ -z "${SPEED_ARGS:-}" ] || read -ra speed_args <<<"$SPEED_ARGS"
[ -z "${PROBE_ARGS:-}" ] || read -ra probe_args <<<"$PROBE_ARGS"

probe_methods=${PROBE_METHODS:-$methods}
mkdir -p "$out"
# Nothing of a half-finished run may hold the GPU.
[[ $stages != *" stop "* ]] || trap '$kvload stop --all' EXIT

step() { # a step that fails is counted, and the others go on
    echo "+ $*" | tee -a "$out/commands.txt" >&2
    local begun=$SECONDS
    "$@" >>"$out/reports.txt"
    local code=$?
    echo "  $((SECONDS - begun)) s, exit $code" >&2
    [ $code -eq 0 ] || echo "FAILED ($code): $*" | tee -a "$out/failures.txt" >&2
    return $code
}

speed() { # start the speed server of a method
    step $kvload launch "$speed_model" --engine "$engine" --python "$python" --method "$1" --name "$engine-$1" \
        --load-format dummy --max-model-len 16384 --kv-memory "$kv_memory" --verify --timeout 400 -- "${speed_args[@]}" \
        2>"$out/launch-$1.txt"
}

probe() { # start the probe model's server of a method
    [ -n "${PROBE_TRACE:-}" ] || return 0
    step $kvload launch --engine "$engine" --python "$python" --method "$1" --name "$engine-probe-$1" \
        --kv-memory 1GiB --verify --timeout 400 -- "${probe_args[@]}" 2>"$out/launch-probe-$1.txt"
}

running() { $kvload status --json | grep -q "\"$1\""; }

start_all() {
    # The baselines come first: the others are verified against their figures.
    speed none &
    probe none &
    wait
    for method in $methods; do [ "$method" = none ] || speed "$method" & done
    for method in $probe_methods; do [ "$method" = none ] || probe "$method" & done
    wait
    cat "$out"/launch-*.txt
    $kvload status --json >"$out/servers.json"
}

replay_speed() {
    local method spec rate run runs folder arms
    for method in $methods; do
        running "$engine-$method" || continue
        # Kernels are compiled when their shapes first come up.
        step $kvload replay "$trace" --server "$engine-$method" --mode forced --rate 16 --limit 80 --too-long drop \
            --out "$out/warm/$method" --quiet
        for spec in $rates; do
            rate=${spec%:*} runs=$method
            [ "$method" = none ] && runs="none none-again"
            for run in $runs; do
                step $kvload replay "$trace" --server "$engine-$method" --mode forced --rate "$rate" \
                    --limit "${spec#*:}" --too-long drop --slo ttft=1s,tpot=50ms --out "$out/rate$rate/$run" --quiet
            done
        done
    done
    for spec in $rates; do
        folder=$out/rate${spec%:*} arms=()
        for method in $methods; do [ -f "$folder/$method/manifest.json" ] && arms+=("$folder/$method"); done
        step $kvload compare "${arms[@]}" --floor-run "$folder/none-again" --slo ttft=1s,tpot=50ms \
            --out "$folder/compare"
    done
}

replay_probe() {
    local method run runs arms=()
    for method in $probe_methods; do
        running "$engine-probe-$method" || continue
        runs=$method
        [ "$method" = none ] && runs="none none-again"
        for run in $runs; do
            step $kvload replay "$PROBE_TRACE" --server "$engine-probe-$method" --mode free --out "$out/probe/$run" \
                --quiet
        done
        arms+=("$out/probe/$method")
    done
    step $kvload compare "${arms[@]}" --floor-run "$out/probe/none-again" --out "$out/probe/compare"
}

save_logs() {
    local name
    for name in $(sed -n 's/.*"name": *"\([^"]*\)".*/\1/p' "$out/servers.json"); do
        $kvload logs "$name" --lines 0 >"$out/$name.log" 2>/dev/null
    done
}

[[ $stages != *" start "* ]] || start_all
[[ $stages != *" speed "* ]] || replay_speed
[[ $stages != *" probe "* || -z ${PROBE_TRACE:-} ]] || replay_probe
save_logs
[ -f "$out/failures.txt" ] && failures=$(wc -l <"$out/failures.txt")
echo "$failures steps failed"
[ "$failures" -eq 0 ]
