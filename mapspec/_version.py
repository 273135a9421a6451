"""The version of the tool; the versions of mappings live in their own files."""

__version__ = "0.1.0"
