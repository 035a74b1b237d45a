"""Implementations of ``TokenSource``: one for each kind of engine that a case measures."""
