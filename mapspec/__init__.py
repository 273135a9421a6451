"""Moving model weights between Hugging Face and Megatron-Core, with the mapping as data."""

from mapspec._version import __version__

__all__ = ["__version__"]
