"""What any program needs: its console, files, signals and processes."""
