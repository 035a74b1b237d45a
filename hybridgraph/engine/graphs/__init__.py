"""Rolling CUDA Graphs: which one serves a request (``policy``), how one is made (``capture``), and the pool at work."""
