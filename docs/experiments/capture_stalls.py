"""Which request is kept waiting by a background capture, and by what: prints stalls, compilations and stacks.

    python docs/experiments/capture_stalls.py
"""

import faulthandler
import random
import tempfile
import time

import triton

from hybridgraph.engine import HybridEngine

engine = HybridEngine.from_pretrained("llama-2-7b", load_format="dummy", forward="fused", ops="fused")
triton.knobs.runtime.jit_cache_hook = lambda **kernel: print("compiles", kernel["repr"][:60])
draw = random.Random(1)
with tempfile.TemporaryFile("w+") as stacks:
    for length in (7, 33, 77, 123, 187, 222, 278, 333, 389):
        for number in range(60):
            prompt = [draw.randrange(3, 32000) for _ in range(length)]
            faulthandler.dump_traceback_later(0.03, file=stacks)
            began = time.perf_counter()
            list(engine.generate(prompt, 1, temperature=0.7))
            took_ms = (time.perf_counter() - began) * 1e3
            faulthandler.cancel_dump_traceback_later()
            if took_ms > 20:
                print(f"{length} tokens, request {number}: {took_ms:.1f} ms, on the device {engine.report.device_ms}")
            time.sleep(0.0002)
    stacks.seek(0)
    print(stacks.read()[:6000])
engine.close()
