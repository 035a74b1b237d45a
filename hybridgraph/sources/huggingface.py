"""Case 1: an unmodified Hugging Face model, called as a user calls it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
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
from hybridgraph.models.faults import model_fault
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
        self._takes_mask = "attention_mask" in inspect.signature(loaded.module.forward).parameters
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
        mask = {"attention_mask": torch.ones_like(prompt)} if self._takes_mask else {}
        emitter = _Emitter(emit, self._timer)
        try:
            self._model.generate(
                prompt,
                max_new_tokens=request.max_new_tokens,
                streamer=emitter,
                **mask,
                **_sampling(request),
                **self._arguments,
            )
        except Exception as error:
            if emitter.emitting:  # it is the caller's own
                raise
            raise self._told(error) from error
        return Report(device_ms=self._timer.elapsed_ms(), graph_path="eager")

    def _told(self, error: Exception) -> Exception:
        """What to raise for an error of ``generate()``; on a GPU it tells by an assertion what it cannot sample."""
        if any(sign in str(error) for sign in ("probability tensor", "device-side assert")):
            return UserError(
                f"generate() cannot sample: the model's logits are not finite in {self._info.dtype}; "
                "try another --dtype"
            )
        fault = model_fault(error)
        return error if fault is None else UserError(f"{type(self._model).__name__} cannot be run ({fault})")

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
        self.emitting = False

    def put(self, value: torch.Tensor) -> None:
        self._tokens_seen += 1
        if self._tokens_seen == 1:
            self._timer.stop()
        if self._tokens_seen > 0:
            token = int(value.item())
            self.emitting = True
            self._emit(token)
            self.emitting = False

    def end(self) -> None:
        pass
