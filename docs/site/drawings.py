"""Draws the pictures of docs/concepts.md: `python docs/site/drawings.py` writes them to docs/figures/.

The colours of each SVG follow the scheme (light or dark) of the page that shows it. Nothing in the pictures is measured; they
show how things work.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

FIGURES = Path(__file__).resolve().parents[1] / "figures"

STYLE = """
svg { --back: #ffffff; --ink: #1f2430; --soft: #59606e; --line: #c3c8d1; --kept: #e3e6ec; --work: #3b6fd4; --on-work: #ffffff;
  --change: #d9822b; --good: #1d7f4f; }
@media (prefers-color-scheme: dark) {
  svg { --back: #1c1f28; --ink: #e7e9ee; --soft: #a9b0bd; --line: #4a5060; --kept: #333846; --work: #6f9bf0; --on-work: #10131a;
    --change: #f0a35a; --good: #5fc790; } }
text { font: 14px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--ink); }
.soft { fill: var(--soft); } .small { font-size: 12px; } .strong { font-weight: 600; } .mid { text-anchor: middle; }
.end { text-anchor: end; } .on { fill: var(--on-work); }
.kept { fill: var(--kept); stroke: var(--line); } .work { fill: var(--work); stroke: var(--back); }
.change { fill: var(--change); stroke: var(--back); } .good { fill: var(--good); } .empty { fill: none; stroke: var(--line); }
.line { stroke: var(--soft); fill: none; stroke-width: 1.5; } .dash { stroke-dasharray: 5 4; }
.move { stroke: var(--change); fill: none; stroke-width: 2.5; } .tip { fill: var(--change); }
"""


class Drawing:
    """An SVG of a given size in which shapes are put one after another."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-labelledby="title description">\n<title id="title">{escape(title)}</title>\n'
            f'<desc id="description">{escape(description)}</desc>\n<style>{STYLE}</style>\n'
            f'<rect width="{width}" height="{height}" rx="8" style="fill: var(--back)"/>'
        )
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>')

    def box(self, x: float, y: float, width: float, height: float, kind: str, corner: float = 3) -> None:
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{corner:g}" class="{kind}"/>')

    def line(self, x: float, y: float, x2: float, y2: float, kind: str = "line") -> None:
        self.parts.append(f'<line x1="{x:g}" y1="{y:g}" x2="{x2:g}" y2="{y2:g}" class="{kind}"/>')

    def dot(self, x: float, y: float, kind: str, radius: float = 5) -> None:
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" class="{kind}"/>')

    def arrow(self, path: str, x: float, y: float, turn: float) -> None:
        """A curve with a tip at its end (x, y), turned by so many degrees from pointing down."""
        self.parts.append(f'<path d="{path}" class="move"/>')
        self.parts.append(f'<path d="M-6,-9 L6,-9 L0,1 z" transform="translate({x:g} {y:g}) rotate({turn:g})" class="tip"/>')

    def svg(self) -> str:
        return "\n".join([self.head, *self.parts, "</svg>\n"])


def tokens(d: Drawing, x: float, y: float, words: list[tuple[str, str, float]]) -> float:
    """A row of cells (word, kind, width). Returns where it ends."""
    for word, kind, width in words:
        d.box(x, y, width, 28, kind)
        d.text(x + width / 2, y + 19, word, "mid small" + (" on strong" if kind in ("work", "change") else ""))
        x += width + 4
    return x


def patching() -> str:
    """Two runs, and a third into which one head's output is carried over."""
    d = Drawing(
        760,
        310,
        "Activation patching",
        "The clean and the corrupted prompt are run. Then the corrupted prompt is run again, with the output of one head taken "
        "from the clean run. The answer's recovery is a number between 0, as in the corrupted run, and 1, as in the clean run.",
    )
    rows = (
        ("clean run", "Max is a lempus ... so Max is a", "tumpus", 30),
        ("corrupted run", "Max is a wumpus ... so Max is a", "yumpus", 100),
        ("patched run", "Max is a wumpus ... so Max is a", "?", 170),
    )
    for name, prompt, says, y in rows:
        d.text(20, y + 14, name, "strong")
        d.text(20, y + 34, prompt, "small soft")
        for i in range(8):
            kind = "kept"
            if i == 3 and name != "corrupted run":
                kind = "change"
            d.box(270 + 34 * i, y + 4, 28, 28, kind)
        d.line(546, y + 18, 580, y + 18)
        d.text(592, y + 23, f"says {says}" if says != "?" else "says ?", "strong" if says == "?" else "")
    d.arrow("M386,64 C420,90 420,140 386,168", 388, 170, 40)
    d.text(424, 86, "one head's output, from the clean run", "small")
    d.line(270, 262, 700, 262)
    for value, x in ((0, 290), (1, 680)):
        d.line(x, 255, x, 269)
        d.text(x, 288, f"{value}: as in the {'clean' if value else 'corrupted'} run", "mid small")
    d.dot(563, 262, "good", 7)
    d.text(563, 246, "0.7: this head restores most of it", "mid small")
    d.text(20, 267, "values", "strong")
    return d.svg()


def prefix() -> str:
    """What two prompts share, and what remains to be computed."""
    d = Drawing(
        760,
        200,
        "The shared prefix",
        "Clean and corrupted prompt begin with the same demonstrations. These positions are computed once. Only the tokens "
        "from the first difference on can change under an intervention.",
    )
    d.text(20, 52, "clean", "strong")
    d.text(20, 92, "corrupted", "strong")
    for y, word in ((34, "lempus"), (74, "wumpus")):
        x = tokens(d, 110, y, [("eight demonstrations: 613 tokens", "kept", 300), ("Max", "kept", 44), ("is a", "kept", 40)])
        tokens(d, x, y, [(word, "change", 68), ("...", "work", 44), ("so Max", "work", 62), ("is a", "work", 44)])
    d.line(110, 122, 502, 122)
    d.text(306, 142, "before the first difference:", "mid small")
    d.text(306, 159, "computed once, kept for every variant and every call", "mid small soft")
    d.line(506, 122, 728, 122, "move")
    d.text(617, 142, "from there on: all that an", "mid small")
    d.text(617, 159, "intervention can change", "mid small")
    return d.svg()


def staircase() -> str:
    """Which layers of which variants are computed."""
    layers, heads, w, h = 6, 3, 24, 30
    d = Drawing(
        760,
        330,
        "The staircase",
        "Columns are variants, one for each head, ordered by the layer of the head. Rows are layers. A variant is computed "
        "only from the layer of its head upwards; below, it is the base run. The computed cells form a staircase.",
    )
    left, top = 130, 50
    for row in range(layers):
        l = layers - 1 - row
        y = top + row * (h + 4)
        d.text(left - 14, y + 20, f"layer {l}", "end small")
        for v in range(layers * heads):
            own = v // heads
            kind = "change" if own == l else "work" if own < l else "kept"
            d.box(left + v * (w + 2), y, w, h, kind)
    bottom = top + layers * (h + 4)
    d.text(left, bottom + 18, "variants: one for each head, from layer 0 (left) to layer 5 (right)", "small")
    d.text(left, 32, "read out: only the rows that the metric needs", "small")
    x = left + layers * heads * (w + 2) + 20
    for i, (kind, words) in enumerate((("kept", "as in the base:"), ("change", "joins here"), ("work", "computed"))):
        d.box(x, top + 20 + 52 * i, 20, 20, kind)
        d.text(x + 28, top + 35 + 52 * i, words, "small")
    d.text(x + 28, top + 51, "not computed", "small")
    d.text(20, bottom + 48, "All variants of a layer are one matrix product. A head joins by the difference", "small soft")
    d.text(
        20,
        bottom + 65,
        "that it makes: x_mid = x_mid(base) + (z_source - z_base)[h] W_O[h]. Nothing is approximated.",
        "small soft",
    )
    return d.svg()


def floor() -> str:
    """Effects of heads beside the noise floor and the control's threshold."""
    d = Drawing(
        760,
        250,
        "Noise floor and controls",
        "Effects of heads on one axis. Those within the noise floor may be rounding. Those within the control's threshold are "
        "as large as what heads do with another prompt's activations. Only heads beyond both are named.",
    )
    zero, scale, y = 300, 520, 120

    def at(value: float) -> float:
        return zero + scale * value

    d.box(at(-0.06), 70, scale * 0.12, 100, "kept", 0)
    for limit in (-0.14, 0.14):
        d.line(at(limit), 70, at(limit), 170, "line dash")
    d.line(40, y, 740, y)
    effects = (-0.05, -0.03, -0.02, -0.01, 0.0, 0.005, 0.012, 0.02, 0.035, 0.05, -0.09, 0.08, 0.1, 0.12, -0.11)
    for i, value in enumerate(effects):
        d.dot(at(value), y + (-14, 0, 14)[i % 3], "kept", 5)
    for value, name in ((-0.35, "L24H4"), (0.36, "L29H1"), (0.72, "L23H0")):
        d.dot(at(value), y, "change", 6)
        d.text(at(value), y - 16, name, "mid small strong")
    d.text(at(0), 58, "noise floor", "mid small strong")
    d.text(at(0), 40, "may be rounding alone", "mid small soft")
    d.text(at(0.15), 188, "control: what 95 % of the heads do not exceed", "small strong")
    d.text(at(0.15), 206, "with another prompt's activations", "small soft")
    d.text(40, 188, "works against", "small soft")
    d.text(40, 206, "the clean answer", "small soft")
    d.text(at(0), 236, "0: nothing changed", "mid small")
    d.line(at(0), 172, at(0), 222, "line")
    d.text(735, 58, "restores the clean answer", "end small soft")
    return d.svg()


DRAWINGS = {"patching": patching, "prefix": prefix, "staircase": staircase, "floor": floor}


def path_of(name: str) -> Path:
    return FIGURES / f"drawing_{name}.svg"


if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        path_of(name).write_text(draw(), "utf-8")
