"""The ahead-of-time compiler: every kernel variant as PTX and cubin for GPUs that are not here."""
