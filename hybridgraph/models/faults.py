"""What libraries say of a model, in our words: of its files, and of its forward."""

from __future__ import annotations

import logging

from hybridgraph.errors import one_line, shortened

# What libraries say, by a part of it, and what is so: their advice is for who calls them, which our users cannot.
OUR_WORDS = (
    ("trust_remote_code", "it needs code of its own, and no code of a model's is ever run here"),
    ("does not recognize this architecture", "the installed transformers knows no architecture of its model_type"),
    ("Unrecognized model identifier", "the installed transformers knows no architecture of its model_type"),
    ("Unrecognized configuration class", "it is no causal language model"),
    ("model.safetensors", "it has no weights as safetensors (of other formats GGUF is read, named as one file)"),
    ("couldn't connect to", "it is not in the cache, and the hub cannot be reached"),
    ("cannot find the requested files in the local cache", "it is not in the cache, and the hub cannot be reached"),
)
# In the texts of errors that have no type of their own.
MACHINE_ERRORS = ("can't allocate memory", "CUDA error", "device-side assert", "CUBLAS_STATUS", "CUDNN_STATUS")


def in_our_words(error: BaseException) -> str:
    """What ``error`` of a library that looks up, reads or builds a model comes to, on one line."""
    text = one_line(error)
    return next((ours for part, ours in OUR_WORDS if part in str(error)), text)


def model_fault(error: Exception) -> str | None:
    """What ``error``, which a forward has raised, says of the model; None where memory or the device is at fault."""
    names = {base.__name__ for base in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"} or any(sign in str(error) for sign in MACHINE_ERRORS):
        return None
    return one_line(error)


class OneLine(logging.Formatter):
    """What a library logs, on one line that a terminal can be given: it may quote a model's files."""

    def format(self, record: logging.LogRecord) -> str:
        return shortened(super().format(record))


def tame_library_messages() -> None:
    """Have transformers log on one line each, but for the table of weights that it could not place: we say that."""
    import transformers  # noqa: F401  # which gives its logger a handler

    for handler in logging.getLogger("transformers").handlers:
        handler.setFormatter(OneLine("%(name)s: %(message)s"))
        handler.addFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in str(record.msg)
