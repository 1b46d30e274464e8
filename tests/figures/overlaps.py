"""Texts of a drawn figure that lie on one another, or beyond its edge."""

from __future__ import annotations

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

LEEWAY = 1.0
"""Pixels: boxes of texts are a little larger than their letters."""


def overlaps(figure: Figure) -> list[str]:
    """What is wrong with the places of a figure's texts, in words."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and _shown(text, renderer):
            box = text.get_window_extent(renderer)
            turned = text.get_rotation() % 90 != 0  # the box of a slanted text is mostly empty
            if box.width > 0 and box.height > 0 and not turned:
                boxes.append((text.get_text(), box))
    edge = figure.bbox
    found = [
        f"{words!r} lies beyond the edge"
        for words, box in boxes
        if box.x0 < -LEEWAY or box.y0 < -LEEWAY or box.x1 > edge.x1 + LEEWAY or box.y1 > edge.y1 + LEEWAY
    ]
    for (a, first), (b, second) in itertools.combinations(boxes, 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        up = min(first.y1, second.y1) - max(first.y0, second.y0)
        if across > LEEWAY and up > LEEWAY and (a, first.bounds) != (b, second.bounds):
            found.append(f"{a!r} and {b!r} overlap by {across:.0f} x {up:.0f} pixels")
    return found


def _shown(text: Text, renderer) -> bool:
    """Whether matplotlib draws it: neither a hidden axis's, nor a tick's outside the limits of its axis."""
    axes = text.axes
    if axes is None:
        return True
    if not axes.get_visible() or (not axes.axison and text not in axes.texts):
        return False
    for axis in (axes.xaxis, axes.yaxis):
        labels = [label for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()) for label in (tick.label1, tick.label2)]
        if text in labels:
            low, high = sorted(axis.get_view_interval())
            at = text.get_unitless_position()[0 if axis is axes.xaxis else 1]
            return low <= at <= high
    return True
