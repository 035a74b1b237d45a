"""The arguments of TensorRT-LLM's LLM API in three versions; what a version does not know is a ValueError."""

import os
from dataclasses import dataclass
from typing import ClassVar

__version__ = {"1.0": "1.0.0", "1.2": "1.2.1", "1.4": "1.4.0rc1"}[os.environ["STAND_IN_VERSION"]]
SINCE_1_4 = __version__.startswith("1.4")


class Strict:
    """A configuration model that forbids extra fields."""

    model_fields: ClassVar = {}

    def __init__(self, **arguments):
        for name in arguments:
            if name not in self.model_fields:
                raise ValueError(f"1 validation error for {type(self).__name__}\n{name}\n  Extra inputs not permitted")
        self.__dict__.update(self.model_fields | arguments)


class KvCacheConfig(Strict):
    model_fields: ClassVar = {
        "enable_block_reuse": True,
        "max_tokens": None,
        "free_gpu_memory_fraction": None,
        "host_cache_size": None,
        "enable_partial_reuse": True,
        "copy_on_partial_reuse": True,
        "dtype": "auto",
        "event_buffer_max_size": 0,
        "use_uvm": False,
    } | ({"tokens_per_block": 32, "max_gpu_total_bytes": 0} if SINCE_1_4 else {})


class _Graphs(Strict):
    model_fields: ClassVar = {"batch_sizes": None, "max_batch_size": 0, "enable_padding": False}

    def __init__(self, **arguments):
        super().__init__(**arguments)
        if self.batch_sizes and self.max_batch_size and max(self.batch_sizes) != self.max_batch_size:
            raise ValueError("batch_sizes and max_batch_size do not match")


if SINCE_1_4:

    class DecodeCudaGraphConfig(_Graphs):
        model_fields: ClassVar = _Graphs.model_fields | {"mode": "decode"}
else:

    class CudaGraphConfig(_Graphs):
        pass


class TorchCompileConfig(Strict):
    model_fields: ClassVar = {
        "enable_fullgraph": True,
        "enable_inductor": False,
        "enable_piecewise_cuda_graph": False,
        "capture_num_tokens": None,
        "enable_userbuffers": True,
        "max_num_streams": 1,
    } | ({"compile_only_piecewise_graphs": False, "max_num_streams": 3} if SINCE_1_4 else {})


_LLM_ARGUMENTS = """
model tokenizer tokenizer_mode skip_tokenizer_init trust_remote_code tensor_parallel_size dtype revision
tokenizer_revision load_format kv_cache_config max_batch_size max_num_tokens max_seq_len max_input_len
max_beam_width enable_chunked_prefill num_postprocess_workers cuda_graph_config torch_compile_config
return_perf_metrics enable_autotuner sampler_type attn_backend disable_overlap_scheduler stream_interval
garbage_collection_gen0_threshold perf_metrics_max_requests enable_iter_perf_stats
"""
_LLM_ARGUMENTS_1_4 = "prefill_cuda_graph_backend prefill_capture_num_tokens" if SINCE_1_4 else ""


class TorchLlmArgs:
    model_fields: ClassVar = dict.fromkeys(f"{_LLM_ARGUMENTS} {_LLM_ARGUMENTS_1_4}".split())


@dataclass(kw_only=True)
class SamplingParams:
    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    n: int = 1
    best_of: int | None = None
    use_beam_search: bool = False
    ignore_eos: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True
    logprobs: int | None = None
    return_context_logits: bool = False
    return_generation_logits: bool = False
    return_perf_metrics: bool = False
    exclude_input_from_output: bool = True
