"""cuBLAS time of each GEMM by rows, cycling 8 layers' weights in a graph; us each."""
import statistics, time, json, os
import torch, torch.nn.functional as F
print(torch.cuda.get_device_name(), flush=True)
SHAPES = dict(qkv=(12288, 4096), out=(4096, 4096), gate_up=(22016, 4096), down=(4096, 11008))
res = {}
for name, (m, k) in SHAPES.items():
    ws = [torch.randn(m, k, device="cuda", dtype=torch.float16) * 0.02 for _ in range(8)]
    for n in [*range(64, 513, 8), *[x for x in range(130, 512, 20)], 576, 640, 768, 1000, 1024]:
        x = torch.randn(n, k, device="cuda", dtype=torch.float16)
        h = torch.randn(n, m, device="cuda", dtype=torch.float16)
        def body():
            for w in ws:
                if name in ("out", "down"): torch.addmm(h, x, w.T, out=h)
                else: F.linear(x, w)
        s = torch.cuda.Stream()
        with torch.cuda.stream(s): body()
        torch.cuda.synchronize()
        g = torch.cuda.CUDAGraph()
        with torch.cuda.graph(g): body()
        h.zero_()
        ts = []
        for i in range(6):
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record(); g.replay(); b.record(); b.synchronize()
            time.sleep(0.001)
            if i > 0: ts.append(a.elapsed_time(b) / 8 * 1e3)
        res.setdefault(n, {})[name] = statistics.median(ts)
for n in sorted(res):
    r = res[n]
    print(n, *(f"{r[x]:.1f}" for x in SHAPES), f"sum {sum(r.values()):.1f}")
json.dump(res, open(os.environ["OUT"] + "/rows.json", "w"))
