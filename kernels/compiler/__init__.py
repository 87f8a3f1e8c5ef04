"""The ahead-of-time compiler: every kernel variant as PTX and cubin, without a GPU."""
