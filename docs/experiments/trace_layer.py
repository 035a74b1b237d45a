"""Stamps inside of the layer kernel: average microseconds between them over blocks and layers.

python trace_layer.py 10,150,400 base "AHEAD_STEPS 4" "AHEAD_STEPS 8"
"""
import sys, time, statistics, ctypes, torch
from pathlib import Path
from hybridgraph.forward.kernels import layer as L
from hybridgraph.forward.kernels.hopper import HopperKernels
src = L.SOURCE.read_text()
defs = []
LABELS = ["entry", "setup", "out.first", "out.main", "out.store", "tell0", "wait0", "norm", "tell1", "gu.first", "gu.main", "gu.store", "tell2", "dn.first", "dn.main", "dn.store", "tell3", "wait3", "norm2", "tell4", "pj.first", "pj.main", "pj.finish", "end"]
def traced(t):
    def rep(a, b, count=1):
        nonlocal t
        assert a in t, a
        t = t.replace(a, b, count)
    rep("struct alignas(64) TensorMap {", "__device__ i64 stamps[64][160][32];\n__device__ int launches;\n#define STAMP(i) do { if (threadIdx.x == 128) { i64 now; asm volatile(\"mov.u64 %0, %%clock64;\" : \"=l\"(now)); stamps[layer.slot][blockIdx.x][i] = now; } } while (0)\nstruct alignas(64) TensorMap {")
    rep("    int inner, num_tokens;\n    float eps;\n};", "    int inner, num_tokens;\n    float eps;\n    int slot;\n};")
    rep("__device__ __forceinline__ void multiply_all(const Product& product, Finish finish) {", "__device__ __forceinline__ void multiply_all(const Product& product, Finish finish, i64* at = nullptr) {")
    rep("            reduce(sums, product.steps);\n", "            reduce(sums, product.steps, at);\n            if (at && threadIdx.x == 128) { i64 now; asm volatile(\"mov.u64 %0, %%clock64;\" : \"=l\"(now)); at[1] = now; }\n")
    rep("void reduce(Sums& sums, int steps) {", "void reduce(Sums& sums, int steps, i64* at) {")
    rep("            wait_for_phase(ring.full + 8 * ring.stage, ring.parity);\n", "            wait_for_phase(ring.full + 8 * ring.stage, ring.parity);\n            if (step == 0 && at && threadIdx.x == 128) { i64 now; asm volatile(\"mov.u64 %0, %%clock64;\" : \"=l\"(now)); at[0] = now; }\n")
    rep("worker.multiply_all(layer.out, store);", "worker.multiply_all(layer.out, store, &stamps[layer.slot][blockIdx.x][2]); STAMP(4);")
    rep("tell_all(layer.arrivals + SUMMED);", "tell_all(layer.arrivals + SUMMED); STAMP(5);")
    rep("workers_wait_for_all(layer.arrivals + SUMMED);", "workers_wait_for_all(layer.arrivals + SUMMED); STAMP(6);")
    rep("layer.normed, num_tokens, layer.eps);\n        fence_for_tma();\n        tell_all(layer.arrivals + NORMED);", "layer.normed, num_tokens, layer.eps); STAMP(7);\n        fence_for_tma(); tell_all(layer.arrivals + NORMED); STAMP(8);")
    rep("            store_swiglu(layer.gated, layer.inner, num_tokens, unit, task, sums);\n        });\n        fence_for_tma();\n        tell_all(layer.arrivals + GATED);", "            store_swiglu(layer.gated, layer.inner, num_tokens, unit, task, sums);\n        }, &stamps[layer.slot][blockIdx.x][9]); STAMP(11);\n        fence_for_tma(); tell_all(layer.arrivals + GATED); STAMP(12);")
    rep("worker.multiply_all(layer.down, store);\n        tell_all(layer.arrivals + SUMMED_AGAIN);\n        workers_wait_for_all(layer.arrivals + SUMMED_AGAIN);", "worker.multiply_all(layer.down, store, &stamps[layer.slot][blockIdx.x][13]); STAMP(15);\n        tell_all(layer.arrivals + SUMMED_AGAIN); STAMP(16);\n        workers_wait_for_all(layer.arrivals + SUMMED_AGAIN); STAMP(17);")
    rep("layer.normed, num_tokens, layer.eps);\n        fence_for_tma();\n        tell_all(layer.arrivals + NORMED_AGAIN);", "layer.normed, num_tokens, layer.eps); STAMP(18);\n        fence_for_tma(); tell_all(layer.arrivals + NORMED_AGAIN); STAMP(19);")
    rep("        finish_projection(layer.rotation, worker.ring.tiles, num_tokens, unit, task, sums);\n    });", "        finish_projection(layer.rotation, worker.ring.tiles, num_tokens, unit, task, sums);\n    }, &stamps[layer.slot][blockIdx.x][20]); STAMP(22);")
    rep("    extern __shared__ unsigned char memory[];", "    STAMP(0);\n    extern __shared__ unsigned char memory[];")
    rep('        asm volatile("setmaxnreg.inc.sync.aligned.u32 152;");', '        asm volatile("setmaxnreg.inc.sync.aligned.u32 152;"); STAMP(1);')
    rep("    pair_wait();  // no block ends", "    pair_wait(); STAMP(23); // no block ends")
    for d in defs: t = f"#define {d}\n" + t
    return t
def use(variant):
    global defs
    defs = [] if variant == "base" else variant.split(";")
    path = Path(__file__).with_name("layer_traced.cu"); path.write_text(traced(src)); L.SOURCE = path
    LIBS.clear(); KERN.clear(); H.max_pairs.cache_clear() if hasattr(H.max_pairs, "cache_clear") else None
PAD = L.Layer.padding.offset  # the slot sits in the padding
counter = [0]
real = L.launch
def launch(layer, shape, device, *, overlap):
    ctypes.c_int.from_address(ctypes.addressof(layer) + PAD).value = counter[0]; counter[0] += 1
    real(layer, shape, device, overlap=overlap)
import hybridgraph.forward.kernels.hopper as H
H.launch = launch
def main():
    from hybridgraph.model import load_model
    from hybridgraph.forward.fused import FusedForward
    from cuda.bindings import driver
    lengths = [int(x) for x in sys.argv[1].split(",")]
    loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=torch.device("cuda"), seed=0)
    fwd = FusedForward(loaded.module); cache = fwd.allocate_cache(512)
    ids = torch.randint(32000, (512,), device="cuda"); start = torch.zeros(1, dtype=torch.long, device="cuda"); last = torch.zeros(1, dtype=torch.long, device="cuda")
    logits = torch.empty(32000, dtype=torch.float16, device="cuda")
    def one(g):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); g.replay(); b.record(); b.synchronize(); return a.elapsed_time(b)
    with torch.inference_mode():
      for variant in sys.argv[2:] or ['base']:
        use(variant); print('==', variant)
        for n in lengths:
            last.fill_(n - 1); counter[0] = 0
            fwd.prefill(ids, n, start, last, cache, logits); torch.cuda.synchronize(); counter[0] = 0
            g = torch.cuda.CUDAGraph()
            with torch.cuda.graph(g): fwd.prefill(ids, n, start, last, cache, logits)
            ts = []
            for _ in range(8): ts.append(one(g)); time.sleep(0.02)
            shape = H.shape_for(n, 4096, torch.float16, 66)
            kernel = L._kernel(shape, 0)
            lib = LIBS[shape]
            (ptr, size) = L._check(driver.cuLibraryGetGlobal(lib, b"stamps"))
            host = torch.empty(64 * 160 * 32, dtype=torch.int64)
            L._check(driver.cuMemcpyDtoH(host.data_ptr(), ptr, host.numel() * 8))
            s = host.view(64, 160, 32)[4:30, :132].double() / 1980
            print(f"{n}: {statistics.median(ts[2:]):.3f} ms", flush=True)
            d = []
            for i in range(1, 24):
                v = s[:, :, i] - s[:, :, i - 1]
                # blocks without a task in a phase keep stale stamps: leave them out
                v = v[(s[:, :, i] > s[:, :, 0]) & (s[:, :, i - 1] >= s[:, :, 0]) & (v >= 0) & (v < 300)]
                d.append(f"{LABELS[i]} {v.mean():.2f}")
            print("   ", " ".join(d))
            gap = s[1:, :, 0] - s[:-1, :, 23]
            print(f"    gap {gap.mean():.2f}  whole {(s[1:, :, 23] - s[:-1, :, 23]).mean():.2f}", flush=True)
LIBS = {}
def _kernel(shape, device):
    if shape in LIBS: return KERN[shape]
    from cuda.bindings import driver
    code = L.compiled(shape)
    (library,) = L._check(driver.cuLibraryLoadData(code, [], [], 0, [], [], 0)); LIBS[shape] = library
    (kernel,) = L._check(driver.cuLibraryGetKernel(library, b"layer"))
    (handle,) = L._check(driver.cuDeviceGet(device))
    L._check(driver.cuKernelSetAttribute(driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shape.shared_bytes, kernel, handle))
    KERN[shape] = L._check(driver.cuKernelGetFunction(kernel))[0]
    return KERN[shape]
KERN = {}
L._kernel = _kernel
if __name__ == "__main__": main()
