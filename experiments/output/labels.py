"""Names beside the points of a scatter, placed so that they do not lie over one another."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

# Where a name may stand: in this direction from its point, and its edge this far from it (points).
_ANGLES, _DISTANCES = np.linspace(0, 2 * np.pi, 16, endpoint=False), (3.0, 7.0, 12.0, 18.0, 25.0, 33.0)
_POINT = 5.0  # width of what a point covers (points)
_NEAR = 7.0  # a name that is farther from its point than this gets a line to it
_PER_POINT = 0.2  # a point of distance is as bad as this many covered square points
_PASSES = 5
_SIZE = 7  # of the letters (points)

Pairs = Float[np.ndarray, "place 2"]
Boxes = Float[np.ndarray, "*box 4"]  # left, bottom, right, top


def name_points(axes: Axes, places: Pairs, names: Sequence[str], colours: Sequence[str], clear: Pairs) -> None:
    """Writes a name beside every point.

    Each name takes the place around its point that covers least of other names, of points, and of what is outside the
    axes; of equal ones the nearest. A few passes over all names settle them.

    Args:
        axes: With the points; its limits must be final.
        places: Of the points, in data units.
        names, colours: Of each point.
        clear: Further places that no name should cover, in data units.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout is known only then
    scale = 72 / figure.dpi  # points a pixel
    points, others = (axes.transData.transform(some) * scale for some in (places, clear))
    sizes = np.array([_size(axes, name) for name in names]) * scale
    frame = np.array(axes.get_window_extent().extents) * scale
    offsets, distances = _settled(points, sizes, np.concatenate([points, others]), frame)
    for place, name, colour, offset, distance in zip(places, names, colours, offsets, distances, strict=True):
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            name,
            tuple(place),
            tuple(offset),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_SIZE,
            color=colour,
            arrowprops=line if distance > _NEAR else None,
            annotation_clip=False,
        ).set_in_layout(False)


def _size(axes: Axes, name: str) -> Float[np.ndarray, "2"]:
    """Width and height of a written name (pixels)."""
    text = axes.text(0, 0, name, fontsize=_SIZE)
    size = text.get_window_extent().size
    text.remove()
    return np.array(size)


def _settled(
    points: Pairs, sizes: Pairs, covered: Pairs, frame: Float[np.ndarray, "4"]
) -> tuple[Pairs, Float[np.ndarray, "place"]]:
    """Middle of each name, from its point, and its distance; everything in points."""
    angle, distance = (some.ravel() for some in np.meshgrid(_ANGLES, _DISTANCES, indexing="ij"))
    directions = np.column_stack([np.cos(angle), np.sin(angle)])
    offsets = directions * (distance[:, None] + sizes[:, None] / 2)
    options = _boxes(points[:, None] + offsets, sizes[:, None])
    dots = _boxes(covered, np.full_like(covered, _POINT))
    area = sizes.prod(1)[:, None]
    fixed = _overlaps(options, dots).sum(-1) + area - _overlaps(options, frame[None])[..., 0] + _PER_POINT * distance
    chosen = fixed.argmin(1)
    everyone = np.arange(len(points))
    for name in np.tile(everyone, _PASSES):
        others = everyone != name
        rest = _overlaps(options[name], options[everyone, chosen][others]).sum(-1)
        chosen[name] = (fixed[name] + rest).argmin()
    return offsets[everyone, chosen], distance[chosen]


def _boxes(middles: Float[np.ndarray, "*box 2"], sizes: Float[np.ndarray, "*#box 2"]) -> Boxes:
    return np.concatenate([middles - sizes / 2, middles + sizes / 2], axis=-1)


def _overlaps(some: Boxes, others: Float[np.ndarray, "other 4"]) -> Float[np.ndarray, "*box other"]:
    """Area that each of some boxes shares with each of the others."""
    some = some[..., None, :]
    sides = np.minimum(some[..., 2:], others[:, 2:]) - np.maximum(some[..., :2], others[:, :2])
    return np.clip(sides, 0, None).prod(-1)
