"""Pictures as SVG elements that take the page's colours: the same numbers give the same bytes."""

from graft.results.plots.curves import figure, learning_curve
from graft.results.plots.style import COLOURS, INK, MARKERS, colour

__all__ = ["COLOURS", "INK", "MARKERS", "colour", "figure", "learning_curve"]
