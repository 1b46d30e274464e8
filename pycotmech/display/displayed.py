"""What every result with an array offers: HTML, figures, a table, an xarray Dataset, and a line of text."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from pycotmech.display.view import View

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as Interactive


class Displayed:
    """A result that shows itself. A class says in `view` what its main array is and in `to_xarray` what all of them are.

    `_repr_html_` is what a notebook shows of it: without scripts, in some kilobytes, for light and dark pages.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__repr__" not in cls.__dict__:  # otherwise a dataclass would write one that prints every array
            cls.__repr__ = cls.__repr__

    def view(self) -> View:
        """Returns the main array, with its axes, labels and noise floor in words: what HTML and figures are made of."""
        raise NotImplementedError

    def to_xarray(self) -> xr.Dataset:
        """Returns all arrays as a Dataset with named axes and labels; how they were made is in its attributes."""
        raise NotImplementedError

    def to_dataframe(self) -> pd.DataFrame:
        """Returns a table with a row for each cell: the labels of its axes, then its numbers.

        Raises ValueError for more than 20 million rows, before they are made.
        """
        from pycotmech.files.long_table import long_table

        return long_table(self.to_xarray())

    def to_plotly(self, *, title: str | None = None) -> Interactive:
        """Returns the main array as a plotly figure that answers to the mouse: a heat map around 0, or bars for one axis.

        Parts that do not fit into two axes have a menu. title: what stands above; None: what was asked.
        Raises ImportError saying what to install where plotly is missing, ValueError for more than 200,000 cells.
        """
        from pycotmech.display.interactive import interactive_figure

        return interactive_figure(self.view(), title)

    def plot(self, *, title: str | None = None, path: str | PathLike | None = None) -> Figure:
        """Returns the main array as a matplotlib figure, saved to `path` if given."""
        from pycotmech.display.static import static_figure

        return static_figure(self.view(), title, path)

    def _repr_html_(self) -> str:
        from pycotmech.display.markup import html_of_view

        return html_of_view(self.view(), type(self).__name__)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.view().line()})"
