"""What tensorrt_llm.llmapi exports in this version."""

from tensorrt_llm.arguments import *  # noqa: F403
