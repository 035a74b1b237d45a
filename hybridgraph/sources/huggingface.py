"""Case 1: an unmodified Hugging Face model, called as a user calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from hybridgraph.cases import Case
from hybridgraph.config import EngineSettings
from hybridgraph.contract import Report, Request, SourceInfo, check_request
from hybridgraph.errors import UserError
from hybridgraph.machine.timing import DeviceTimer
from hybridgraph.models.loading import LoadedModel
from hybridgraph.sources.build import load
from hybridgraph.system.console import OnProgress


def open_generate(config: EngineSettings, case: Case, progress: OnProgress) -> HuggingFaceSource:
    """Load the model that ``config`` means, on its device; raises UserError where it cannot."""
    loaded, info, _ = load(config, case, progress)
    return HuggingFaceSource(loaded, replace(info, forward="hf", ops="generate()"))


class HuggingFaceSource:
    """``model.generate()`` at batch 1, sampling over the full vocabulary; ids arrive through a streamer."""

    def __init__(self, loaded: LoadedModel, info: SourceInfo, **generate_arguments: Any) -> None:
        self._model = loaded.module
        # An end-of-text id does not end a measured answer, and no case reshapes the distribution further.
        self._model.generation_config = GenerationConfig(pad_token_id=0)
        self._device = loaded.device
        self._info = info
        self._arguments = generate_arguments
        self._timer = DeviceTimer(loaded.device)

    @property
    def info(self) -> SourceInfo:
        return self._info

    @torch.inference_mode()
    def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
        check_request(request, self._info)
        torch.manual_seed(request.seed)
        self._timer.start()
        prompt = torch.tensor([request.prompt_ids], device=self._device)
        with self._overflow_is_users():
            self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=request.max_new_tokens,
                streamer=_Emitter(emit, self._timer),
                **_sampling(request),
                **self._arguments,
            )
        return Report(device_ms=self._timer.elapsed_ms(), graph_path="eager")

    @contextmanager
    def _overflow_is_users(self) -> Iterator[None]:
        """Tell logits that torch refuses to sample from in one line; on a GPU it says so by a kernel's assertion."""
        try:
            yield
        except RuntimeError as error:
            if not any(sign in str(error) for sign in ("probability tensor", "device-side assert")):
                raise
            raise UserError(
                f"generate() cannot sample: the model's logits are not finite in {self._info.dtype}; "
                "try another --dtype"
            ) from None

    def stats(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        del self._model


def _sampling(request: Request) -> dict[str, Any]:
    if request.temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": request.temperature, "top_k": 0, "top_p": 1.0}


class _Emitter(BaseStreamer):  # type: ignore[misc]  # transformers is not typed
    """Hands each id on as it comes; ``generate()`` sends the prompt first."""

    def __init__(self, emit: Callable[[int], None], timer: DeviceTimer) -> None:
        self._emit = emit
        self._timer = timer
        self._tokens_seen = -1

    def put(self, value: torch.Tensor) -> None:
        self._tokens_seen += 1
        if self._tokens_seen == 1:
            self._timer.stop()
        if self._tokens_seen > 0:
            self._emit(int(value.item()))

    def end(self) -> None:
        pass
