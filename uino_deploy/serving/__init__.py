"""The service: classes enrolled and images segmented over HTTP; and a repository for Triton."""
