"""What a generator and its clients say to each other, and the Unix socket they say it over."""
