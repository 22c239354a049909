"""The OpenAI-compatible API: engines that generate, a queue in front of each, and the HTTP application."""
