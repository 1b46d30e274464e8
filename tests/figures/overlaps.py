"""Texts of a drawn figure that lie on one another, or beyond its edge."""

from __future__ import annotations

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

LEEWAY = 2.0
"""Pixels: boxes of texts are a little larger than their letters."""


class Recorder(RendererAgg):
    """Keeps the texts that are drawn: ticks beyond the limits of an axis exist and are not."""

    def __init__(self, *given: float) -> None:
        super().__init__(*given)
        self.texts: list[Text] = []

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
        if mtext is not None and mtext not in self.texts:
            self.texts.append(mtext)
        super().draw_text(gc, x, y, s, prop, angle, ismath, mtext)


def overlaps(figure: Figure) -> list[str]:
    """What is wrong with the places of a figure's texts, in words."""
    FigureCanvasAgg(figure).draw()  # what is laid out at the first draw
    width, height = figure.bbox.size
    renderer = Recorder(int(width), int(height), figure.dpi)
    figure.draw(renderer)
    # The box of a slanted text is mostly empty.
    texts = [text for text in renderer.texts if text.get_text().strip() and text.get_rotation() % 90 == 0]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    found = [
        f"{words!r} lies beyond the edge"
        for words, box in boxes
        if box.x0 < -LEEWAY or box.y0 < -LEEWAY or box.x1 > width + LEEWAY or box.y1 > height + LEEWAY
    ]
    for (a, first), (b, second) in itertools.combinations(boxes, 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        up = min(first.y1, second.y1) - max(first.y0, second.y0)
        if across > LEEWAY and up > LEEWAY:
            found.append(f"{a!r} and {b!r} overlap by {across:.0f} x {up:.0f} pixels")
    return found
