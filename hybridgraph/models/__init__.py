"""Models by name: their numbers, their files, their weights."""
