"""Text to packed rows to a mixed, resumable stream. Arrays are numpy; nothing here imports torch."""
