"""Block diffusion: students that write a block of tokens at a time (Fast-dLLM v2, arXiv 2509.26328)."""
