"""What results show beside their numbers: pictures, tables, and maps in TensorBoard's projector.

A kind of result gets its pictures by one line in :data:`DRAWN`; estimators know nothing of drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from lightning.pytorch.loggers import Logger

from lightning_slt.estimators import Compression, Influence, KernelEstimate, Responses
from lightning_slt.reporting.compression import compression_pictures
from lightning_slt.reporting.influence import influence_texts
from lightning_slt.reporting.kernels import kernel_pictures
from lightning_slt.reporting.responses import response_pictures
from lightning_slt.reporting.tensorboard import Embedding, write_embedding, write_figure, write_text

Picture = Callable[[], Any] | Embedding | str
"""Something that draws a matplotlib figure, only where it will be seen, a map of samples, or Markdown."""

DRAWN: dict[type, Callable[[Any], Mapping[str, Picture]]] = {
    KernelEstimate: kernel_pictures,
    Influence: influence_texts,
    Responses: response_pictures,
    Compression: compression_pictures,
}
"""``{kind of result: function of it that gives {name: picture}}``."""


def pictures(result: Any) -> Mapping[str, Picture]:
    """Pictures of a result by name; none for kinds that have none."""
    return next((drawn(result) for kind, drawn in DRAWN.items() if isinstance(result, kind)), {})


class Shown(NamedTuple):
    """What TensorBoard gets of a result beside its scalars.

    Attributes:
        pictures: Figures.
        tables: Texts.
        embeddings: Maps of samples for the projector.
    """

    pictures: bool = True
    tables: bool = True
    embeddings: bool = True


EVERYTHING = Shown()


def write_pictures(
    loggers: Sequence[Logger],
    name: str,
    results: Mapping[str, Mapping[str, Any]],
    step: int,
    *,
    worthless: Collection[str] = (),
    shown: Shown = EVERYTHING,
) -> None:
    """Log the pictures of one reading as ``<name>/<component>/<key>/<picture>``.

    Args:
        loggers: The Trainer's.
        name: The monitor's.
        results: ``{component: {key: result}}``.
        step: The x axis.
        worthless: Those of them, as ``<component>/<key>``, that are not to be shown.
        shown: Which kinds of pictures.
    """
    drawn = [(f"{c}/{key}", r) for c, by_key in results.items() for key, r in by_key.items()]
    for where, result in drawn:
        for title, picture in () if where in worthless else pictures(result).items():
            tag = f"{name}/{where}/{title}"
            if isinstance(picture, Embedding):
                if shown.embeddings:
                    write_embedding(loggers, tag, picture, step)
            elif isinstance(picture, str):
                if shown.tables:
                    write_text(loggers, tag, picture, step)
            elif shown.pictures:
                write_figure(loggers, tag, picture, step)
