"""The Hugging Face forward with and without cuDNN's attention: are ids repeated, and what does it cost?"""

import random
import statistics

import torch

from hybridgraph.config import PAPER_PROMPT_LENGTHS
from hybridgraph.engine import HybridEngine

ENABLE = torch.backends.cuda.enable_cudnn_sdp


def measure(engine: HybridEngine) -> tuple[list[bool], float, list[float]]:
    """(whether each of five answers repeats the first one's ids, ms of a token, ms of a prefill by length)"""
    prompt = [random.randrange(32000) for _ in range(100)]
    expected, *repeated = [list(engine.generate(prompt, 300)) for _ in range(6)]
    engine._buffers.position.fill_(300)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(10):
        engine.replay_decode()
    begin.record()
    for _ in range(100):
        engine._pool.replay_decode()  # type: ignore[union-attr]
    end.record()
    end.synchronize()
    prefills = []
    for length in PAPER_PROMPT_LENGTHS:
        times_ms = []
        for _ in range(25):
            list(engine.generate([random.randrange(32000) for _ in range(length)], 1))
            times_ms.append(engine.report.device_ms or 0.0)
        prefills.append(statistics.fmean(times_ms[5:]))
    return [ids == expected for ids in repeated], begin.elapsed_time(end) / 100, prefills


def main() -> None:
    for _ in range(2):
        for with_cudnn in (True, False):
            ENABLE(with_cudnn)
            with HybridEngine.from_pretrained(
                "llama-2-7b", load_format="dummy", ops="native", async_capture=False, precapture=PAPER_PROMPT_LENGTHS
            ) as engine:
                repeated, token_ms, prefills = measure(engine)
            print("with cuDNN" if with_cudnn else "without", "| ids repeated", repeated, "| token", f"{token_ms:.3f}")
            print("  prefill", [f"{ms:.2f}" for ms in prefills], f"mean {statistics.fmean(prefills):.3f}", flush=True)


main()
