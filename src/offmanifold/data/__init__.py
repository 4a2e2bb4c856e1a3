"""Data in: arrays, frames, files and folders become checked tensors and an :class:`InputSpec`."""
