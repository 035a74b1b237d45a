"""f16 accumulators, promoted to f32 every PROMOTE stages of 64 columns (0: never)."""
import math
from pathlib import Path
from hybridgraph.forward.kernels import product
SRC = product.SOURCE.read_text()
orig = product._prelude
MODE = {"promote": None}
def new_source(promote):
    if promote is None: return SRC
    s = SRC.replace("constexpr bool UNEVEN_SHARES = TOKENS / 2 + 28", "constexpr bool UNEVEN_SHARES = TOKENS * 3 / 4 + 28")
    a = s.index("// One warpgroup: its unit's sums"); b = s.index("// An 8 x 8 block as wgmma")
    body = r'''
__device__ __forceinline__ void promote(float (&sums)[TOKENS / 2], u32 (&part)[TOKENS / 4]) {
#pragma unroll
    for (int i = 0; i < TOKENS / 4; i++) {
        float lo, hi;
        asm volatile("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}" : "=f"(lo), "=f"(hi) : "r"(part[i]));
        sums[2 * i] += lo; sums[2 * i + 1] += hi;
    }
}
__device__ __forceinline__ void reduce(float (&sums)[TOKENS / 2], const Ring& ring, int warpgroup, int steps) {
    constexpr int P = PROMOTE ? PROMOTE : 1000000;
    u32 part[TOKENS / 4];
#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++) sums[i] = 0.0f;
    int fresh = 0;
    for (int step = 0; step < steps; step++) {
        const int stage = step % STAGES;
        wait_for_phase(ring.full + 8 * stage, step / STAGES % 2);
        const u64 a = descriptor(ring.units(stage) + warpgroup * UNIT_BYTES), b = descriptor(ring.tokens(stage));
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int k = 0; k < BLOCK_K / 16; k++) multiply(part, a + 2 * k, b + 2 * k, fresh + k > 0);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        const int index = threadIdx.x % 128;
        fresh++;
        const bool full = fresh == P;
        if (full) asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        else asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        if (step > 0 && index < CLUSTER) arrive_at(ring.empty + 8 * ((step - 1) % STAGES), index);
        if (full) { promote(sums, part); fresh = 0; }
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    if (fresh) promote(sums, part);
}

'''
    return f"#define PROMOTE {promote}\n" + s[:a] + body + s[b:]
class Source:
    name = "product.cu"
    def read_text(self): return new_source(MODE["promote"])
product.SOURCE = Source()
def f16_multiplication(first, count, element):
    n = count // 4
    registers = ", ".join(f"%{i}" for i in range(n))
    sums = ", ".join(f'"+r"(sums[{first // 4 + i}])' for i in range(n))
    return f"""asm volatile(
        "{{.reg .pred p; setp.ne.b32 p, %{n + 2}, 0;"
        "wgmma.mma_async.sync.aligned.m64n{count}k16.f16.{element}.{element} "
        "{{{registers}}}, %{n}, %{n + 1}, p, 1, 1, 0, 0;}}"
        : {sums} : "l"(unit), "l"(tokens + {first * 128 // 16}), "r"(accumulate));"""
def prelude(epilogue, tile, dtype):
    text = orig(epilogue, tile, dtype)
    if MODE["promote"] is None: return text
    old = product._multiplication; product._multiplication = f16_multiplication
    try: text = orig(epilogue, tile, dtype)
    finally: product._multiplication = old
    return text.replace(f"float (&sums)[{tile.tokens // 2}], unsigned long long unit", f"unsigned (&sums)[{tile.tokens // 4}], unsigned long long unit")
product._prelude = prelude
def use(promote):
    MODE["promote"] = promote; product._kernel.cache_clear()
