"""`mapspec verify --logits`: do two checkpoints compute the same? One set of tokens through both, layer by layer."""

from mapspec.logits.compare import compare_logits
from mapspec.logits.render import render_logits
from mapspec.logits.report import LayerLine, LogitsReport, Measured

__all__ = ["LayerLine", "LogitsReport", "Measured", "compare_logits", "render_logits"]
