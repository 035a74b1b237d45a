"""Standalone: TTFT of vLLM at batch 1 in other configurations."""

import json
import os
import random
import statistics
import sys
import tempfile
import time

mode, mp = sys.argv[1], sys.argv[2]
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = mp


def main():
    from vllm import LLM, SamplingParams

    from hybridgraph.shapes import builtin_config

    d = tempfile.mkdtemp()
    json.dump(builtin_config("llama-2-7b") | {"torch_dtype": "float16"}, open(d + "/config.json", "w"))
    t0 = time.time()
    cc = {"cudagraph_capture_sizes": [1, 10, 50, 100, 150, 200, 250, 300, 350, 400]}
    if mode != "default":
        cc["cudagraph_mode"] = mode
    llm = LLM(
        model=d,
        dtype="float16",
        load_format="dummy",
        skip_tokenizer_init=True,
        max_num_seqs=1,
        max_model_len=1024,
        max_num_batched_tokens=2048,
        enable_prefix_caching=False,
        gpu_memory_utilization=0.9,
        compilation_config=cc,
    )
    print("start", time.time() - t0, flush=True)
    e = llm.llm_engine
    n = 0
    for seeded in (True, False):
        for L in (10, 100, 200, 400):
            ts, itl = [], []
            for i in range(40):
                n += 1
                ids = [random.randrange(3, 32000) for _ in range(L)]
                sp = SamplingParams(
                    max_tokens=16 if i < 8 else 1,
                    temperature=1.0,
                    seed=n if seeded else None,
                    ignore_eos=True,
                    detokenize=False,
                )
                t = time.perf_counter()
                e.add_request(str(n), {"prompt_token_ids": ids}, sp)
                first = None
                while e.has_unfinished_requests():
                    for o in e.step():
                        if first is None and o.outputs[0].token_ids:
                            first = time.perf_counter()
                end = time.perf_counter()
                ts.append(1e3 * (first - t))
                if i < 8:
                    itl.append(1e3 * (end - first) / 15)
            print(
                mode,
                "mp",
                mp,
                "seeded",
                seeded,
                L,
                "mean %.3f" % statistics.mean(ts[8:]),
                "median %.3f" % statistics.median(ts[8:]),
                "itl %.3f" % statistics.median(itl),
                flush=True,
            )


if __name__ == "__main__":
    main()
