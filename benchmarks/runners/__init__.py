"""The runners: one small class per backend or peer, each run in its own process."""
