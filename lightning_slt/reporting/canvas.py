"""Pictures that look the same whatever a user's matplotlib looks like: dark on an opaque white ground.

TensorBoard shows a picture on its page, which is light or dark as its reader likes: on a transparent ground, or with
the white letters of ``plt.style.use("dark_background")``, it could be read on one of them alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")


def plainly() -> AbstractContextManager[None]:
    """Matplotlib's own style for a while; the user's comes back, backend and current figure stay.

    Raises:
        ImportError: Without matplotlib.
    """
    try:
        from matplotlib import style
    except ImportError as error:
        raise ImportError("pictures need matplotlib; pip install lightning_slt[plot]") from error
    return style.context("default")


def picture(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A function that draws :func:`plainly`.

    Args:
        draw: Makes a ``matplotlib.figure.Figure``.
    """

    @wraps(draw)
    def drawn(*args: P.args, **keywords: P.kwargs) -> Figure:
        with plainly():
            return draw(*args, **keywords)

    return drawn
