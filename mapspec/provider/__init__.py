"""Provider side: an HF config as Megatron-Core fields and back, and the objects that build models from them.

Nothing here imports torch or Megatron-Core until a model, or a Python object that a field names, is asked for.
"""
