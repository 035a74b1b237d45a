"""The static operations: a model's forward over caller-owned buffers of fixed shapes, ready to be captured."""
