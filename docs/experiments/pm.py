"""prelude with several wgmmas across and register hand-over"""
import torch, math
from hybridgraph.forward.kernels import product
from pathlib import Path
orig = product._prelude
def multiply(tokens, element):
    parts = math.ceil(tokens / 200) if tokens > 200 else 1
    per = math.ceil(tokens / 8 / parts) * 8
    out, first = [], 0
    while first < tokens:
        n = min(per, tokens - first); ns = n // 2
        regs = ", ".join(f"%{i}" for i in range(ns)); sums = ", ".join(f'"+f"(sums[{first // 2 + i}])' for i in range(ns))
        out.append(f'''asm volatile("{{.reg .pred p; setp.ne.b32 p, %{ns + 2}, 0;"
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{element}.{element} {{{regs}}}, %{ns}, %{ns + 1}, p, 1, 1, 0, 0;}}"
        : {sums} : "l"(unit), "l"(tokens + {first * 8}), "r"(accumulate));''')
        first += n
    return "\n".join(out)
def prelude(ep, tile, dtype, regs=True):
    t = orig(ep, tile, dtype)
    if tile.tokens <= 200 or not regs: return t
    head = t[:t.index("// sums (+)=")]
    return head + f"#define MAXREG\n__device__ __forceinline__ void multiply(float (&sums)[{tile.tokens // 2}], unsigned long long unit, unsigned long long tokens, int accumulate) {{\n{multiply(tile.tokens, 'f16')}\n}}\n#line 1\n"
def install():
    product._prelude = prelude
    product.SOURCE = Path("exp/product_m.cu").resolve()
