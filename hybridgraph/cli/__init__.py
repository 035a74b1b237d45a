"""What the scripts and the command line call."""
