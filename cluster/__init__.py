"""Where Ray clusters come from, and who owns them."""
