"""Colours of figures and pages: Okabe and Ito's, which the common kinds of colour blindness can tell apart."""

INK, MUTED, GRID = "#3a3a3a", "#8a8a8a", "#e6e3dc"
BLUE, VERMILLION, GREEN = "#0072b2", "#d55e00", "#009e73"
SKY, ORANGE, PINK = "#56b4e9", "#e69f00", "#cc79a7"
# Without yellow, which is too light for lines on white.
PALETTE = (BLUE, VERMILLION, GREEN, PINK, ORANGE, SKY, INK)
BAND = "#dcdcdc"  # of a null
