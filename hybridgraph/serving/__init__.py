"""One engine, served to other processes."""
