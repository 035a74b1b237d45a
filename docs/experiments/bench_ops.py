"""Each product of a layer alone, five layers' weights in a row: cuBLAS with what follows, and own tiles. On 9a9e49a."""
import sys, time, math, torch, statistics
from concurrent.futures import ThreadPoolExecutor
from hybridgraph.forward.kernels import HeadNorms, Heads, Slots
from hybridgraph.forward.kernels.product import *
from hybridgraph.forward.kernels import product
from hybridgraph.forward.kernels.hopper import HopperKernels
from hybridgraph.forward.kernels.triton import TritonKernels
dev = torch.device("cuda"); f16 = torch.float16
from cuda.bindings import driver
def max_clusters(name, tile):
    k = product._kernel(name, tile, f16, 0)
    c = driver.CUlaunchConfig()
    c.gridDimX, c.gridDimY, c.gridDimZ = tile.sharing * 64, tile.splits, 1
    c.blockDimX, c.blockDimY, c.blockDimZ = 128 * (tile.warpgroups + 1), 1, 1
    c.sharedMemBytes = tile.shared_bytes
    c.attrs = product._attributes(tile, False)[:1]; c.numAttrs = 1
    return driver.cuOccupancyMaxActiveClusters(k, c)
torch.cuda.init(); torch.zeros(1, device=dev)
L = 5
qkv = [torch.randn(12288, 4096, device=dev, dtype=f16) / 64 for _ in range(L)]
out = [torch.randn(4096, 4096, device=dev, dtype=f16) / 64 for _ in range(L)]
gu = [torch.randn(22016, 4096, device=dev, dtype=f16) / 64 for _ in range(L)]
down = [torch.randn(4096, 11008, device=dev, dtype=f16) / 105 for _ in range(L)]
norm_w = torch.ones(4096, device=dev, dtype=f16)
heads = Heads(queries=32, keys=32, dim=128, scale=128**-0.5, eps=1e-5)
cos = torch.rand(1024, 64, device=dev); sin = torch.rand(1024, 64, device=dev)
cache = torch.zeros(2, 32, 1024, 128, device=dev, dtype=f16)
slots = Slots(cache[0], cache[1], cos, sin)
start = torch.zeros(1, dtype=torch.long, device=dev)
T_ = TritonKernels(); H = HopperKernels()
def timed(run):
    s = torch.cuda.Stream()
    with torch.cuda.stream(s):
        run()
    s.synchronize()
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        run()
    ts = []
    for i in range(12):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); g.replay(); b.record(); b.synchronize(); ts.append(a.elapsed_time(b))
        time.sleep(0.004)
    return statistics.median(ts[2:]) / L * 1e3
def r8(n): return math.ceil(n / 8) * 8
def variants(n):
    """name -> list of tiles"""
    v = {"qkv": [], "out": [], "down": [], "gu": []}
    t1 = r8(n)
    if n <= 200:
        v["qkv"] += [Tile(3, t1, r, 2) for r in (1, 2, 4)] + [Tile(2, t1, r, 1) for r in (2, 4)]
        v["gu"] += [Tile(3, t1, r, 1) for r in (1, 2, 4)]
    if n <= 256:
        v["out"] += [Tile(2, t1, 2, 4), Tile(2, t1, 1, 4), Tile(1, t1, 4, 2), Tile(1, t1, 2, 2)]
    if n > 200:
        t2 = r8(math.ceil(n / 2))
        if t2 <= 200:
            v["qkv"] += [Tile(3, t2, r, 1) for r in (1, 2, 4)]
            v["gu"] += [Tile(3, t2, 2, 1), Tile(3, t2, 4, 1)]
        v["out"] += [Tile(2, t2, r, 2) for r in (1, 2, 4)]
        t3 = r8(math.ceil(n / 3))
        if t3 <= 136: v["gu"] += [Tile(4, t3, 2, 1)]
    v["down"] = v["out"]
    return v
NAME = {"qkv": "Rotate", "out": "Add", "down": "Add", "gu": "Swiglu"}
lengths = [int(x) for x in sys.argv[1].split(",")]
jobs = {(NAME[k], t) for n in lengths for k, ts in variants(n).items() for t in ts}
t0 = time.time()
def comp(j):
    try: product._cached(j[0], j[1], f16)
    except RuntimeError as e: print("compile", j, str(e)[-200:])
with ThreadPoolExecutor(16) as ex: list(ex.map(comp, jobs))
print(f"compiled {len(jobs)} in {time.time()-t0:.1f} s with 16 threads")
for t in (Tile(2, 200, 2, 1), Tile(2, 200, 4, 1), Tile(2, 200, 2, 4), Tile(2, 200, 4, 2), Tile(2,200,1,4)):
    nm = "Swiglu" if t.splits == 1 else "Add"
    try: print("max clusters", t.sharing, t.splits, max_clusters(nm, t))
    except Exception as e: print("max clusters", t, e)
for n in lengths:
    x = torch.randn(n, 4096, device=dev, dtype=f16); y = torch.randn(n, 11008, device=dev, dtype=f16)
    hidden = torch.zeros(n, 4096, device=dev, dtype=f16)
    def rot(tile, w):
        q = x.new_empty(n, 4096)
        e = Rotate(*(t.data_ptr() for t in (q, slots.keys, slots.values, cos, sin)), 0, start.data_ptr(), slots.keys.stride(0), 32, 32, 128)
        launch(x, w, Pairs(64, 128), e, tile, overlap=True)
    def add(tile, a, w):
        launch(a, w, Pairs(8, 4096), Add(hidden.data_ptr(), 4096), tile, overlap=True)
        T_.norm(hidden, norm_w, 1e-5)
    def swi(tile, w):
        o = x.new_empty(n, 11008)
        launch(x, w, Pairs(11008, 22016), Swiglu(o.data_ptr(), 11008), tile, overlap=True)
    base = {
        "qkv": lambda: [T_.linear_rotate(x, w, None, 32, start, heads, HeadNorms(), slots) for w in qkv],
        "out": lambda: [T_.linear_add_norm(hidden, x, w, norm_w, 1e-5) for w in out],
        "down": lambda: [T_.linear_add_norm(hidden, y, w, norm_w, 1e-5) for w in down],
        "gu": lambda: [T_.linear_swiglu(x, w) for w in gu],
    }
    own = {
        "qkv": lambda t: [rot(t, w) for w in qkv], "out": lambda t: [add(t, x, w) for w in out],
        "down": lambda t: [add(t, y, w) for w in down], "gu": lambda t: [swi(t, w) for w in gu],
    }
    for k, ts in variants(n).items():
        line = [f"cublas {timed(base[k]):.1f}"]
        for t in ts:
            try: line.append(f"W{t.warpgroups} n{t.tokens} R{t.sharing} S{t.splits}: {timed(lambda: own[k](t)):.1f}")
            except Exception as e: line.append(f"{t}: {str(e)[:60]}")
        print(f"{n:4d} {k:5s}", " | ".join(line), flush=True)
