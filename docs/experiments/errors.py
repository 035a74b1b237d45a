"""How far half-precision forwards are from float32: Hugging Face's, and the fused one."""
import copy, statistics, sys
import torch
from hybridgraph.model import load_model
from hybridgraph.forward.fused import FusedForward
loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=torch.device("cuda"), seed=0)
start = torch.zeros(1, dtype=torch.long, device="cuda")
logits = torch.empty(32000, dtype=torch.float16, device="cuda")
def error(a, b): return float((a.double() - b.double()).norm() / b.double().norm())
found = {"hf": [], "fused": [], "apart": []}
with torch.inference_mode():
    full = copy.deepcopy(loaded.module).float()
    prompts = [torch.randint(32000, (n,), device="cuda") for n in (5, 10, 64, 100, 200, 400) for _ in range(3)]
    hf = [loaded.module(p[None], logits_to_keep=1).logits[0, 0].float() for p in prompts]
    ref = [full(p[None], logits_to_keep=1).logits[0, 0] for p in prompts]
    fused = FusedForward(loaded.module); cache = fused.allocate_cache(512)
    for p, h, r in zip(prompts, hf, ref):
        n = p.numel()
        fused.prefill(p, n, start, start + n - 1, cache, logits)
        found["hf"].append(error(h, r)); found["fused"].append(error(logits, r)); found["apart"].append(error(logits, h))
        print(n, *(f"{name} {v[-1]:.2e}" for name, v in found.items()), flush=True)
m = {name: statistics.mean(v) for name, v in found.items()}
print("mean", m, "max fused", max(found["fused"]))
sys.exit(m["fused"] > 1.05 * m["hf"] or max(found["fused"]) > 1e-2)
