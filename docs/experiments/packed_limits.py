"""Limits of packed weights by kernels.tune's probes, then prefills with them, and decode steps by splits of attention.

python packed_limits.py
"""

import random
import statistics
import time
from dataclasses import replace

import torch

from hybridgraph.engine.forward.fused import FusedForward
from hybridgraph.kernels import tune
from hybridgraph.kernels.bench import gpu_workload
from hybridgraph.kernels.heuristics import Blocks, limits_on
from hybridgraph.kernels.hopper import nvrtc
from hybridgraph.kernels.hopper.gemm import Gemm, Tile, program_of, tile_for
from hybridgraph.kernels.hopper.kernels import HopperKernels
from hybridgraph.kernels.packed import pack
from hybridgraph.kernels.replay import Work, compared_us
from hybridgraph.models.loading import load_model

LENGTHS = range(16, 177, 16)
read = nvrtc._read
OLD = """        multiply_stage(sums, step, [&](int k) { return fragments.of + 4 * k; });
    }
"""
OLD_LOAD = """        fragments = load_tile(ring.units(step % STAGES) + warpgroup * UNIT_BYTES + warp * TILE_BYTES);
"""
NEW_LOAD = """        u32 w[12];
        load_words(w, ring.units(step % STAGES) + warpgroup * UNIT_BYTES + warp * TILE_BYTES);
"""
NEW = """        const u64 tokens = descriptor(ring.tokens(step % STAGES));
#pragma unroll
        for (int k = 0; k < BLOCK_K / 16; k++) {
            unpack(fragments.of, 4 * k, w[3 * k], w[3 * k + 1], w[3 * k + 2]);
            wgmma_fence();
            multiply(sums, (const u32*)fragments.of + 4 * k, tokens + 2 * k, step + k > 0);
            wgmma_commit();
        }
        wgmma_wait<BLOCK_K / 16>();
        const int index = threadIdx.x % 128;
        if (step > 0 && index < CLUSTER) arrive_at(ring.empty + 8 * ((step - 1) % STAGES), index);
    }
"""
INTERLEAVED = [
    ("gemm.cu", OLD, NEW),
    ("gemm.cu", OLD_LOAD, NEW_LOAD),
    (
        "packed.cuh",
        """// This lane's part of a tile in shared memory: three pieces of 16 bytes.
""",
        """__device__ __forceinline__ void load_words(u32 (&w)[12], u32 tile) {
#pragma unroll
    for (int piece = 0; piece < 3; piece++)
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w[4 * piece]), "=r"(w[4 * piece + 1]), "=r"(w[4 * piece + 2]), "=r"(w[4 * piece + 3])
                     : "r"(tile + 512 * piece + 16 * (threadIdx.x % 32)));
}
""",
    ),
]


def use(patches):
    """Sources with ``patches``, from now on."""

    def patched(file):
        text = read(file)
        for of, old, new in patches:
            if of == file:
                assert text.count(old) == 1, old
                text = text.replace(old, new)
        return text

    nvrtc._read = patched
    nvrtc.kernel_of.cache_clear()


device = torch.device("cuda")
begin = time.perf_counter()


def say(*text):
    print(f"[{time.perf_counter() - begin:5.1f}]", *text, flush=True)


def compile_all():
    shapes = (("store_swiglu", 3), ("store_partial", 3), ("store_partial", 2))
    programs = {
        program_of(epilogue, tile_for(n, warpgroups, packed=packed), torch.float16)
        for epilogue, warpgroups in shapes
        for n in (*LENGTHS, 10, 50, 100, 150)
        for packed in (False, True)
    }
    nvrtc.compile_together(programs)


VARIANTS = {
    "as it is": [],
    "interleaved": INTERLEAVED,
    "not unpacked": [("packed.cuh", "    to[at + 3] = (w0 << 1", "    to[at + 3] = w0; return; to[at + 3] = (w0 << 1")],
    "one of four multiplied": [
        (
            "gemm.cu",
            "        for (int k = 0; k < BLOCK_K / 16; k++) multiply(sums, unit(k), tokens + 2 * k, step + k > 0);",
            "        for (int k = 0; k < 1; k++) multiply(sums, unit(k), tokens + 2 * k, step + k > 0);",
        )
    ],
}


def parts_of_gate_up(work):
    """Where the time of the packed GEMM goes: variants, of which the last two answer wrongly; and whichever is best."""
    weights = work.matrices("gate_up")
    packed = [pack(weight, merged=True) for weight in weights]
    in_all = dict.fromkeys(VARIANTS, 0.0)
    for n in (16, 48, 104, 152):
        rows, outs = work.random(n, 4096), {name: work.random(n, 11008) for name in ("plain", *VARIANTS)}

        def of(matrices, gemm, out):
            return Work(lambda each: gemm(rows, each, out, overlap=True), matrices)

        tile = tile_for(n, 3, packed=True)
        works = {"plain": of(weights, Gemm("store_swiglu", tile_for(n, 3)), outs["plain"])}
        works |= {
            f"cluster {c}": of(packed, Gemm("store_swiglu", replace(tile, cluster=c)), outs["as it is"]) for c in (1, 4)
        }
        times = compared_us(works)
        for name, patches in VARIANTS.items():
            use(patches)
            times[name] = compared_us({0: of(packed, Gemm("store_swiglu", tile), outs[name])})[0]
            in_all[name] += times[name]
        same = [name for name in VARIANTS if torch.equal(outs[name], outs["plain"])]
        say(f"gate/up {n}:", ", ".join(f"{name} {us:.1f}" for name, us in times.items()), "; equal:", same)
    best = "interleaved" if in_all["interleaved"] < in_all["as it is"] else "as it is"
    say("from here on:", best)
    use(VARIANTS[best])
    compile_all()
    say("compiled")


def found_limits(work, limits):
    for probe in tune._packed_limit_probes(work, limits):
        sides = [tune._both_us(*probe.sides(n)) for n in probe.lengths]
        best, near, loss = tune.best_limit(probe.lengths, *zip(*sides), probe.recorded)
        say(
            f"{probe.name} {best} ({near}), recorded {probe.recorded} costs {loss:.1%}:",
            " ".join(f"{n}:{a:.1f}/{b:.1f}" for n, (a, b) in zip(probe.lengths, sides)),
        )
        limits = replace(limits, **{probe.name: best})
    return limits


def captured(run):
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    return graph


def timed(graph):
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    graph.replay()
    after.record()
    after.synchronize()
    return before.elapsed_time(after)


def compared(graphs, rounds=4):
    apart, rows = {way: [] for way in graphs}, {way: [] for way in graphs}
    for _ in range(rounds):
        for way in random.sample(list(graphs), len(graphs)):
            for i in range(7):
                took = timed(graphs[way])
                time.sleep(0.005)
                if i > 1:
                    apart[way].append(took)
        for way in random.sample(list(graphs), len(graphs)):
            rows[way].append(statistics.mean([timed(graphs[way]) for _ in range(90)][40:]))
    return {way: (statistics.median(apart[way]), statistics.median(rows[way])) for way in graphs}


def main():
    limits = limits_on(torch.cuda.get_device_name())
    work = gpu_workload("this", "llama-2-7b", "float16")
    compile_all()
    say("compiled")
    parts_of_gate_up(work)
    limits = found_limits(work, limits)
    torch.cuda.empty_cache()
    loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=device, seed=0)
    logits = torch.empty(32000, dtype=torch.float16, device=device)
    forwards = {w: FusedForward(loaded.module, HopperKernels(limits), weights=w) for w in ("plain", "packed")}
    cache = forwards["plain"].allocate_cache(512)
    cache.keys.normal_()
    cache.values.normal_()
    token, position = torch.zeros(1, dtype=torch.long, device=device), torch.full((1,), 511, device=device)
    graphs = {}
    for weights, programs in (("plain", 256), ("plain", 512), ("packed", 256), ("packed", 512), ("packed", 1024)):
        forward = forwards[weights]
        forward._kernels = HopperKernels(limits, Blocks(attention_programs=programs))
        graphs[weights, programs] = captured(lambda forward=forward: forward.decode(token, position, cache, logits))
    for way, (apart, row) in compared(graphs).items():
        say(f"decode {way}: apart {apart:.3f}, back to back {row:.3f}")
    ids, start, last = (
        torch.randint(32000, (512,), device=device),
        torch.zeros(1, dtype=torch.long, device=device),
        torch.zeros(1, dtype=torch.long, device=device),
    )
    for forward in forwards.values():
        forward._kernels = HopperKernels(limits)
    for n in (10, 50, 100, 150, 200):
        last.fill_(n - 1)
        graphs = {}
        for weights, forward in forwards.items():
            forward.prepare([n])
            graphs[weights] = captured(lambda forward=forward: forward.prefill(ids, n, start, last, cache, logits))
        times = compared(graphs)
        (a, b), (c, d) = times["plain"], times["packed"]
        say(
            f"prefill {n}: apart {a:.3f} -> {c:.3f} ({c / a:.3f}), back to back {b:.3f} -> {d:.3f} ({d / b:.3f}), finite {bool(logits.isfinite().all())}"
        )


with torch.inference_mode():
    main()
