"""WrinkleFree: the science of making, exporting and serving 1.58-bit language models; pure Python and torch, no Ray."""
