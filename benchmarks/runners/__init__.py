"""What is timed: a small class for each backend or peer, run in a process of its own."""
