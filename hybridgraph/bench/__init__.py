"""The protocol, the measuring loop, and the files that it writes."""
