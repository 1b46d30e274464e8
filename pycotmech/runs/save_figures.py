"""The figures of a results folder, by name, as files with their captions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pycotmech._choices import did_you_mean, shortened, unknown_choice
from pycotmech.files.text import markdown
from pycotmech.files.write import replacing, subfolder, write_text
from pycotmech.runs.folder import made_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
CAPTIONS = "captions.md"
"""The file with a caption for each figure."""


@dataclass(frozen=True)
class Drawing:
    """A figure that a results folder can draw. title: what it shows; source: the experiment of the paper, as in "E8, stage I"
    (docs/protocol.md), "" where there is none; draw: makes the figure."""

    title: str
    source: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class SavedFigures:
    """What was written. files: by the name of the figure; captions: their file; failures: why a figure could not be drawn, by
    its name; missing: figures that the folder has no results for, and what would make them (`Results.missing_drawings`)."""

    files: Mapping[str, tuple[Path, ...]]
    captions: Path
    failures: Mapping[str, str]
    missing: Mapping[str, str]


def check_arguments(formats: Sequence[str], dpi: float) -> None:
    """Raises ValueError naming the argument."""
    if not formats:
        raise ValueError(f"formats: is empty; expected some of {', '.join(FORMATS)}")
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(unknown_choice("formats", unknown[0], FORMATS, several=True))
    if not 20 <= dpi <= 1200:
        raise ValueError(f"dpi: got {dpi}; expected 20 to 1200")


def chosen(
    drawings: Mapping[str, Drawing], only: Sequence[str] | None, missing: Mapping[str, str] | None = None
) -> dict[str, Drawing]:
    """The drawings of these names, or of these experiments ("E8"). Raises ValueError for what is neither, and for what is
    missing, with what would make it."""
    if only is None:
        return dict(drawings)
    if not only:
        raise ValueError("only: is empty; expected names of figures, or experiments such as E8")
    found: dict[str, Drawing] = {}
    for asked in only:
        fits = {
            name: drawing
            for name, drawing in drawings.items()
            if asked in (name, name.rpartition("/")[2]) or _experiment(drawing.source) == asked.upper()
        }
        if not fits and asked in (missing or {}):
            raise ValueError(f"only: {asked} cannot be drawn: {(missing or {})[asked]}")
        if not fits:
            raise ValueError(_unknown(asked, drawings))
        found |= fits
    return found


def _unknown(asked: str, drawings: Mapping[str, Drawing]) -> str:
    """The message for what is neither a figure nor an experiment. A name that several settings or traces have stands once."""
    if not drawings:
        return f"only: got {asked!r}; expected none: nothing is finished"
    names = list(dict.fromkeys(name.rpartition("/")[2] for name in drawings))
    numbers = list(dict.fromkeys(filter(None, (_experiment(drawing.source) for drawing in drawings.values()))))
    also = f", or of the experiments {', '.join(numbers)}" if numbers else ""
    hint = did_you_mean(asked, [*numbers, *drawings, *names])
    return f"only: got {asked!r}; expected some of {shortened(names, 'pycotmech figures FOLDER --list')}{also}{hint}"


def _experiment(source: str) -> str:
    """E8, of "E8, stage I"; "" of a source that is no experiment."""
    first = source.replace(",", " ").replace(";", " ").split()[:1]
    return first[0] if first and first[0][:1] == "E" and first[0][1:].isdigit() else ""


def save(
    drawings: Mapping[str, Drawing],
    out: str | os.PathLike,
    *,
    formats: Sequence[str],
    dpi: float,
    heading: str,
    missing: Mapping[str, str] | None = None,
) -> SavedFigures:
    """Draws each figure once and writes it in every format, NAME.<format> in the folder `out`; a name such as
    "trace_000/suppress" is a file in a folder of it. A figure that cannot be drawn is named in `failures`, and the others
    are made. The captions hold each figure's title and small print: the model, how many examples, what the bars are."""
    from pycotmech.figures.frame import caption, save_as

    folder = made_folder(out)
    files: dict[str, tuple[Path, ...]] = {}
    failures: dict[str, str] = {}
    lines = [f"# {markdown(heading)}", ""]
    for name, drawing in drawings.items():
        try:
            figure = drawing.draw()
            above, _, stem = name.rpartition("/")
            place = subfolder(folder, above) if above else folder
            written = tuple(place / f"{stem}.{ending}" for ending in formats)
            for path in written:
                with replacing(path) as temporary:
                    save_as(figure, temporary, dpi=dpi)
        except (ValueError, KeyError) as error:  # of values that are damaged or all missing
            failures[name] = str(error)
            continue
        files[name] = written
        title, small_print = caption(figure)
        source = f" ({markdown(drawing.source)})" if drawing.source else ""
        lines += [f"## {name}", "", *(f"[{path.name}]({path.relative_to(folder).as_posix()})" for path in written), ""]
        lines += [f"**{markdown(title or drawing.title)}**{source}", "", *(f"* {markdown(line)}" for line in small_print), ""]
    if failures:
        lines += ["## Not drawn", "", *(f"* {name}: {markdown(why)}" for name, why in failures.items()), ""]
    if missing:
        lines += ["## No results yet", "", *(f"* {name}: {markdown(why)}" for name, why in missing.items()), ""]
    write_text(folder / CAPTIONS, "\n".join(lines))
    return SavedFigures(files, folder / CAPTIONS, failures, dict(missing or {}))
