"""Case 5's process must not import this: the one in TensorRT-LLM's environment is not ours."""

raise ImportError(f"{__name__} was imported in the environment of TensorRT-LLM")
