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


def parts_of_gate_up(work):
    """Where the time of the packed GEMM goes: variants whose answers are wrong."""
    read = nvrtc._read
    variants = {
        "as it is": [],
        "not unpacked": [("packed.cuh", "    to[at + 3] = (w0 << 1", "    to[at + 3] = w0; return; to[at + 3] = (w0 << 1")],
        "not multiplied": [("gemm.cu", "        for (int k = 0; k < BLOCK_K / 16; k++) multiply(sums, unit(k), tokens + 2 * k, step + k > 0);", "        for (int k = 0; k < 1; k++) multiply(sums, unit(k), tokens + 2 * k, step + k > 0);")],
    }
    weights = work.matrices("gate_up")
    packed = [pack(weight, merged=True) for weight in weights]
    for n in (16, 48, 104, 152):
        rows, out = work.random(n, 4096), work.random(n, 11008)
        works = {"plain": Work(lambda w, rows=rows, out=out, n=n: Gemm("store_swiglu", tile_for(n, 3))(rows, w, out, overlap=True), weights)}
        for cluster in (1, 2, 4):
            gemm = Gemm("store_swiglu", replace(tile_for(n, 3, packed=True), cluster=cluster))
            works[f"packed, cluster {cluster}"] = Work(lambda w, gemm=gemm, rows=rows, out=out: gemm(rows, w, out, overlap=True), packed)
        times = compared_us(works)
        for name, patches in variants.items():
            def patched(file, patches=patches):
                text = read(file)
                for of, old, new in patches:
                    if of == file:
                        assert text.count(old) == 1, old
                        text = text.replace(old, new)
                return text
            nvrtc._read = patched
            nvrtc.kernel_of.cache_clear()
            gemm = Gemm("store_swiglu", tile_for(n, 3, packed=True))
            times[name] = compared_us({0: Work(lambda w, gemm=gemm, rows=rows, out=out: gemm(rows, w, out, overlap=True), packed)})[0]
        nvrtc._read = read
        nvrtc.kernel_of.cache_clear()
        say(f"gate/up {n}:", ", ".join(f"{name} {us:.1f}" for name, us in times.items()))


def found_limits(work, limits):
    for probe in tune._packed_limit_probes(work, limits):
        sides = [tune._both_us(*probe.sides(n)) for n in probe.lengths]
        best, near, loss = tune.best_limit(probe.lengths, *zip(*sides), probe.recorded)
        say(f"{probe.name} {best} ({near}), recorded {probe.recorded} costs {loss:.1%}:", " ".join(f"{n}:{a:.1f}/{b:.1f}" for n, (a, b) in zip(probe.lengths, sides)))
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
    ids, start, last = torch.randint(32000, (512,), device=device), torch.zeros(1, dtype=torch.long, device=device), torch.zeros(1, dtype=torch.long, device=device)
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
        say(f"prefill {n}: apart {a:.3f} -> {c:.3f} ({c / a:.3f}), back to back {b:.3f} -> {d:.3f} ({d / b:.3f}), finite {bool(logits.isfinite().all())}")


with torch.inference_mode():
    main()
