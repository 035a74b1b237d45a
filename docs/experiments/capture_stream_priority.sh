#!/usr/bin/env bash
# Does a request beside a background capture wait less where graphs are captured on a stream of higher priority?
# Two copies of this checkout, one with the priority; prints the largest TTFT of each length over its median.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
cp -r "$here" "$work/a" && cp -r "$here" "$work/b"
sed -i 's/self._capture_stream = torch.cuda.Stream(\(device\|self._device\))/self._capture_stream = torch.cuda.Stream(\1, priority=-1)/' \
    "$work/b/hybridgraph/graphs/capture.py"
for run in a b a2 b2; do
    cd "$work/${run%2}"
    ./run_case4_benchmark.sh --forward fused --prompt-lengths 7,33,77,123,187,222,278,333,389 --p99-iterations 30 \
        --output-dir "$work/results_$run"
done
python3 - "$work" <<'PYTHON'
import json, sys
for run in ("a", "b", "a2", "b2"):
    path = f"{sys.argv[1]}/results_{run}/case4_jit_cuda_fused_samples.jsonl"
    times = {}
    for line in open(path).read().splitlines()[1:]:
        sample = json.loads(line)
        times.setdefault(sample["prompt_length"], []).append(sample["ttft_ms"])
    print(run, {n: round(max(t) / sorted(t)[len(t) // 2], 2) for n, t in times.items()})
PYTHON
