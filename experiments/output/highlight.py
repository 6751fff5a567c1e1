"""A text with each token's background as strong as a latent's activation on it, for the report and for W&B tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from diffing.ranking.examples import LatentExample

# Vermillion of the Okabe-Ito palette; translucent, so that the text stays readable on light and on dark pages.
_RGB = "213,94,0"
_STRONGEST = 0.62


def highlight(example: "LatentExample", peak: float) -> Markup:
    """One example as HTML spans; `peak` is the activation that gets the strongest background.

    All examples of a latent are given the same `peak`, so their colours can be compared. Hovering a token shows its
    activation. Token texts are escaped.
    """
    spans = zip(example.tokens, example.activations, strict=True)
    return Markup("").join(_span(token, activation, peak) for token, activation in spans)


def highlight_all(examples: Sequence["LatentExample"]) -> Markup:
    """Examples as one small self-contained HTML fragment: a line each, with the model it comes from."""
    peak = peak_activation(examples)
    line = Markup(
        '<p style="margin:0 0 .5em;font:14px/1.6 system-ui,sans-serif;white-space:pre-wrap">'
        '<b style="font-weight:600">{model}</b> <span style="opacity:.6">{peak:.2f}</span>  {text}</p>'
    )
    return Markup("\n").join(
        line.format(model=example.model, peak=max(example.activations, default=0.0), text=highlight(example, peak))
        for example in examples
    )


def peak_activation(examples: Sequence["LatentExample"]) -> float:
    """The largest activation in any of the examples; 0 without any."""
    return max((activation for example in examples for activation in example.activations), default=0.0)


def _span(token: str, activation: float, peak: float) -> Markup:
    # A line break would be an empty, unreadable span.
    text = token.replace("\n", "↵")
    if activation <= 0 or peak <= 0:
        return Markup("{}").format(text)
    alpha = _STRONGEST * min(activation / peak, 1.0)
    style = f"background:rgba({_RGB},{alpha:.2f});border-radius:2px"
    return Markup('<span style="{}" title="{:.3g}">{}</span>').format(style, activation, text)
