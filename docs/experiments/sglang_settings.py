"""Time SGLang with random prompts: argv: prefill graphs (default, full, tc_piecewise) and further settings as JSON.

    python sglang_settings.py full '{"disable_overlap_schedule": true}'

/tmp/ckpt holds a config.json of Llama-2-7B's shape. Prints, of 26 requests a length behind 4 unmeasured ones, time to
the first id (mean, least, most), and of the last 6 time per id over 16 further ones, in ms.
"""

import json
import random
import statistics
import sys
import time

LENGTHS = (10, 100, 200, 400)


def main() -> None:
    from sglang import Engine

    mode = sys.argv[1]
    further = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    prefill = {"bs": [10, 50, 100, 150, 200, 250, 300, 350, 400]} | ({} if mode == "default" else {"backend": mode})
    start = time.time()
    engine = Engine(
        model_path="/tmp/ckpt",
        dtype="float16",
        load_format="dummy",
        skip_tokenizer_init=True,
        random_seed=1,
        max_running_requests=1,
        context_length=512,
        disable_radix_cache=True,
        cuda_graph_config={"prefill": prefill, "decode": {"bs": [1]}},
        log_level="warning",
        **further,
    )
    print("ready", round(time.time() - start, 1), flush=True)
    rng = random.Random()
    for length in LENGTHS:
        first, between = [], []
        for number in range(30):
            ids = [rng.randrange(3, 32000) for _ in range(length)]
            new = 17 if number >= 24 else 1
            sampling = {"max_new_tokens": new, "temperature": 0.7, "ignore_eos": True}
            asked, times = time.perf_counter(), []
            for chunk in engine.generate(input_ids=ids, sampling_params=sampling, stream=True):
                times += [time.perf_counter()] * (len(chunk["output_ids"]) > len(times))
            assert len(times) == new and not chunk["meta_info"]["cached_tokens"]
            if number > 3:
                first.append(1e3 * (times[0] - asked))
            if new > 1:
                between.append(1e3 * (times[-1] - times[0]) / (new - 1))
        ttft = " ".join(f"{f(first):.2f}" for f in (statistics.mean, min, max))
        print(mode, further, length, "ttft", ttft, "itl", f"{statistics.mean(between):.2f}", flush=True)
    engine.shutdown()


if __name__ == "__main__":
    main()
