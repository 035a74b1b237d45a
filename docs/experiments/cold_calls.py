import time, statistics as st, ctypes, torch
from weakref import WeakSet
clock = time.perf_counter_ns
n = 514
host = torch.zeros(n, dtype=torch.int64, pin_memory=True); dev = torch.zeros(n, dtype=torch.int64, device="cuda")
from cuda.bindings import runtime as rt
s = torch.cuda.current_stream().cuda_stream
lib = ctypes.CDLL("libcudart.so.13")
dp, hp = dev.data_ptr(), host.data_ptr()
a = [ctypes.c_void_p(dp), ctypes.c_void_p(hp), ctypes.c_size_t(n * 8), ctypes.c_int(1), ctypes.c_void_p(s)]
K = rt.cudaMemcpyKind.cudaMemcpyHostToDevice
cap = torch.cuda.Stream()
ev = torch.cuda.Event(enable_timing=True, external=True); end = torch.Event("cuda", enable_timing=True); gen = torch.Event("cuda", enable_timing=True)
g1, g2 = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
with torch.cuda.stream(cap):
    g1.capture_begin(); dev.copy_(host, non_blocking=True); g1.capture_end()
    g2.capture_begin(); ev.record(); dev.copy_(host, non_blocking=True); g2.capture_end()
w = torch.randn(4096, 4096, device="cuda", dtype=torch.half)
big = torch.cuda.CUDAGraph()
x = w @ w
with torch.cuda.stream(cap):
    big.capture_begin()
    for _ in range(200): y = w @ w
    big.capture_end()
end.record(); gen.record(); torch.cuda.synchronize()
fs = dict(copy_=lambda: dev.copy_(host, non_blocking=True), ctypes=lambda: lib.cudaMemcpyAsync(*a), bindings=lambda: rt.cudaMemcpyAsync(dp, hp, n * 8, K, s), graph=g1.replay, graph_event=g2.replay, event=gen.record, torch_event=lambda: ev.record(), device=lambda: torch.cuda.device(0).__enter__(), big=big.replay)
ws = WeakSet()
class O: pass
def weak():
    o = O(); ws.add(o)
fs["weakset"] = weak
def prod(): rt
for name, f in fs.items():
    t, d = [], []
    for _ in range(100):
        torch.cuda.synchronize()
        e = clock() + 4_000_000
        while clock() < e: torch.cuda.current_stream
        t0 = clock(); f(); t.append(clock() - t0)
    h = []
    torch.cuda.synchronize()
    for _ in range(100):
        t0 = clock(); f(); h.append(clock() - t0); torch.cuda.synchronize()
    print("%-12s cold %.1f us  hot %.1f" % (name, st.median(t) / 1e3, st.median(h) / 1e3))
# correctness: elapsed from an event node to a plain event, and the copy
for i in range(3):
    host.fill_(i + 5); g2.replay(); big.replay(); end.record(); end.synchronize()
    print("graph event -> event ms", end and gen is not None, dev[0].item())
    try: print("   mixed elapsed", ev.elapsed_time(end))
    except Exception as x: print("   mixed:", type(x).__name__, str(x)[:200])
    e2 = torch.cuda.Event(enable_timing=True); g2.replay(); big.replay(); e2.record(); e2.synchronize(); print("   same kind", ev.elapsed_time(e2))
# what the device sees: copy then big, by three ways
for name in ("copy_", "graph", "ctypes"):
    f = fs[name]; t = []
    for _ in range(30):
        torch.cuda.synchronize(); e = clock() + 4_000_000
        while clock() < e: pass
        t0 = clock(); f(); big.replay(); end.record(); end.synchronize(); t.append(clock() - t0)
    print(name, "then big, wall us %.1f" % (st.median(t) / 1e3))
