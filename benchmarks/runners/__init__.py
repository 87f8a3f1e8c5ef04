"""The runners: a small class for each backend or peer, each run in a process of its own."""
