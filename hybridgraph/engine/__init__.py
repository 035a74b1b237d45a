"""The hybrid engine."""
