import time, statistics as st, torch, triton, triton.language as tl
from hybridgraph.engine import HybridEngine
from hybridgraph.records import Request
clock = time.perf_counter_ns
@triton.jit
def fetch_kernel(host, dev, N: tl.constexpr, B: tl.constexpr):
    c = tl.arange(0, B)
    tl.store(dev + c, tl.load(host + c, c < N), c < N)
L = (10, 150, 400)
e = HybridEngine.from_pretrained("llama-2-7b", load_format="dummy", forward="fused", ops="fused", precapture=L, async_capture=False)
b = e._buffers
from cuda.bindings import runtime as rt
K = rt.cudaMemcpyKind.cudaMemcpyHostToDevice
with torch.cuda.device(0):
    s = torch.cuda.current_stream().cuda_stream
    N = b._input.numel()
    def memcpy(): b._input.copy_(b._input_host, non_blocking=True)
    def kernel(): fetch_kernel[(1,)](b._input_host, b._input, N=N, B=1024)
    kernel(); torch.cuda.synchronize()
    start = torch.cuda.Event(enable_timing=True, external=True); start.record()
    def captured(head, n):
        def run():
            head(); e._static.run_prefill(n)
        return e._pool.backend.capture(run, run)
    end = torch.cuda.Event(enable_timing=True); end.record()
    plain0, plain1 = torch.Event("cuda", enable_timing=True), torch.Event("cuda", enable_timing=True)
    for n in L:
        g0 = e._pool.cache.look_up(n)[1]
        gm, gk = captured(memcpy, n), captured(kernel, n)
        def both(): start.record(); memcpy()
        ge = captured(both, n)
        fs = dict(
            base=lambda: (plain0.record(), memcpy(), g0.replay()),
            bindings=lambda: (plain0.record(), rt.cudaMemcpyAsync(b._input.data_ptr(), b._input_host.data_ptr(), N * 8, K, s), g0.replay()),
            node=lambda: (plain0.record(), gm.replay()),
            kernel=lambda: (plain0.record(), gk.replay()),
            event_node=lambda: ge.replay(),
            nothing=lambda: g0.replay(),
        )
        for g in (g0, gm, gk, ge): g.replay(); torch.cuda.synchronize()
        t = {k: [] for k in fs}; l = {k: [] for k in fs}
        for i in range(60):
            for name, f in fs.items():
                torch.cuda.synchronize()
                until = clock() + 4_000_000
                while clock() < until: torch.cuda.current_stream
                b._input_words[:n] = i
                t0 = clock(); f(); l[name].append(clock() - t0)
                plain1.record(); plain1.synchronize(); t[name].append(clock() - t0)
        print(n, "  ".join("%s launch %.1f wall %.1f" % (k, st.median(l[k]) / 1e3, st.median(t[k]) / 1e3) for k in fs), flush=True)
    ge.replay(); end.record(); end.synchronize(); print("elapsed event node -> event", start.elapsed_time(end))
