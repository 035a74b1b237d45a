#!/usr/bin/env bash
# What looking at the logits of every answer costs the next request: this checkout (b), and one that does not look (a).
set -eu
rm -rf /tmp/a /tmp/b
git clone -q . /tmp/b
cp -r /tmp/b /tmp/a
sed -i 's/overflowed = not math.isfinite(.*/overflowed = False/' /tmp/a/hybridgraph/forward/static.py
for i in 1 2 3; do
    for x in a b; do
        (cd "/tmp/$x" && ./run_case4_benchmark.sh --forward fused --pause-ms 5 --prompt-lengths 10,100,200,300 \
            --precapture 10,100,200,300 --ttft-iterations 2 --p99-iterations 60 --output-dir "/tmp/res/$x$i")
    done
done
python3 - <<'PYTHON'
import json, os, statistics as st
for d in sorted(os.listdir("/tmp/res")):
    rows = [json.loads(l) for l in open(f"/tmp/res/{d}/case4_jit_cuda_fused_samples.jsonl")][1:]
    w = [x for x in rows if x["warmth"] == "warm" and x["phase"] == "p99"]
    print(d, "client-device p50 %.3f" % st.median(x["ttft_ms"] - x["device_ms"] for x in w))
PYTHON
