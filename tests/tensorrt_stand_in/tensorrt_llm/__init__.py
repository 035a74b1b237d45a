"""A TensorRT-LLM that plays back a stream. ``STAND_IN_FAULT`` is what goes wrong:

no-mpi, hang-start, oom, killed, reused, short, hang, hang-shutdown, crash.
An LLM starts a worker process, as the real one does, and writes its id to ``STAND_IN_WORKER``.
"""

import json
import os
import queue
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

from tensorrt_llm.arguments import (  # noqa: F401
    SINCE_1_4,
    KvCacheConfig,
    SamplingParams,
    TorchLlmArgs,
    __version__,
)

FAULT = os.environ.get("STAND_IN_FAULT", "")
_never = queue.Queue()

if FAULT == "no-mpi":
    raise ImportError("libmpi.so.40: cannot open shared object file: No such file or directory")


class LLM:
    def __init__(
        self,
        model,
        tokenizer=None,
        tokenizer_mode="auto",
        skip_tokenizer_init=False,
        trust_remote_code=False,
        tensor_parallel_size=1,
        dtype="auto",
        revision=None,
        tokenizer_revision=None,
        **kwargs,
    ):
        for name in kwargs:
            if name not in TorchLlmArgs.model_fields:
                raise ValueError(f"LLM got invalid argument: {name}")
        assert dtype == "float16" and kwargs["max_batch_size"] == 1
        self._config = json.loads((Path(model) / "config.json").read_text())
        self._skips_tokenizer = skip_tokenizer_init
        self._reuses = kwargs.get("kv_cache_config", KvCacheConfig()).enable_block_reuse
        self._seen = set()
        print("[TensorRT-LLM][INFO] a worker that prints to standard output", flush=True)
        os.write(1, b"[TensorRT-LLM][INFO] and from below Python\n")
        self._worker = None
        if os.environ.get("TLLM_WORKER_USE_SINGLE_PROCESS") != "1":
            self._worker = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
            Path(os.environ["STAND_IN_WORKER"]).write_text(str(self._worker.pid))
        if FAULT == "hang-start":
            _never.get()
        if FAULT == "oom":
            raise RuntimeError("CUDA out of memory. Tried to allocate 13.00 GiB\nsecond line")
        if FAULT == "killed":
            os.kill(os.getpid(), signal.SIGKILL)

    def _answer(self, inputs, sampling_params):
        if self._skips_tokenizer and sampling_params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        return _Output(self, inputs["prompt_token_ids"], sampling_params)

    if SINCE_1_4:

        def generate_async(self, inputs, sampling_params=None, lora_request=None, streaming=False):
            return self._answer(inputs, sampling_params)
    else:

        def generate_async(
            self, inputs, sampling_params=None, lora_request=None, prompt_adapter_request=None, streaming=False
        ):
            return self._answer(inputs, sampling_params)

    def reused_blocks(self, ids):
        first = tuple(ids[:8])
        reused = FAULT == "reused" or (self._reuses and first in self._seen)
        self._seen.add(first)
        return int(reused)

    def shutdown(self):
        if FAULT == "hang-shutdown":
            _never.get()
        print("[TensorRT-LLM][INFO] shutting down", flush=True)
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()


class _Output:
    """A RequestOutput: iterated, it blocks for each chunk; the token ids of a chunk are cumulative."""

    def __init__(self, llm, prompt_ids, params):
        num_tokens = params.max_tokens - (FAULT == "short")
        tokens = [(sum(prompt_ids) + i) % llm._config["vocab_size"] for i in range(num_tokens)]
        self._chunks = [tokens[: i + 1] for i in range(num_tokens)]
        self._reused = llm.reused_blocks(prompt_ids)
        self._metrics_wanted = params.return_perf_metrics

    def __iter__(self):
        return self

    def __next__(self):
        if FAULT == "hang":
            _never.get()
        if FAULT == "crash":
            raise RuntimeError("worker died\nsecond line")
        if not self._chunks:
            raise StopIteration
        tokens = self._chunks.pop(0)
        metrics = self._metrics() if self._metrics_wanted and not self._chunks else None
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, request_perf_metrics=metrics)])

    def _metrics(self):
        times = {"arrival_time": 10.0, "first_scheduled_time": 10.001, "first_token_time": 10.0075}
        return SimpleNamespace(
            timing_metrics=SimpleNamespace(**{name: timedelta(seconds=s) for name, s in times.items()}),
            kv_cache_metrics=SimpleNamespace(num_reused_blocks=self._reused),
        )
