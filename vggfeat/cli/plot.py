"""`vggfeat plot`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggfeat.cli.options import among, settings_options
from vggfeat.cli.terminal import exit_codes, say, set_up_logging
from vggfeat.core.option import OF_CACHE, OF_IMAGE
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

_FOR_IMAGES = (
    "channels", "overlay", "config", "model", "weights", "transform", "size", "crop", "device",
)  # fmt: skip
_FOR_CACHES = ("projection", "marks", "sample", "root")
_IMAGE = {"group": OF_IMAGE}
EXAMPLES = (
    "vggfeat plot photo.jpg --layers conv1_2,conv3_4 --out maps.png",
    "vggfeat plot photo.jpg --overlay --out seen.png",
    "vggfeat plot feats.h5 --out cache.png",
)
_CACHE_ENDINGS = (".h5", ".hdf5")


def _choice(text: str, metavar: str, group: str, *words: str) -> Any:
    """Declare an option without a default value, so that it can be refused for the wrong input."""
    return typer.Option(
        help=text,
        metavar=metavar,
        rich_help_panel=group,
        autocompletion=among(*words) if words else None,
    )


@settings_options(
    "layers", "channels", "overlay", "config", "model", "weights", "transform", "size", "crop",
    "device",
    instead={
        "model": {"help": "vgg11, 13, 16 or 19, each also with _bn.", **_IMAGE},
        "weights": {
            "help": "imagenet, features, a .pth or .safetensors file, or random[:SEED].",
            **_IMAGE,
        },
        "transform": {"help": "Whose mean and deviation normalise the image.", **_IMAGE},
        "size": {"help": "Side of the network's input in pixels.", **_IMAGE},
        "crop": {"help": "How the image is cut to that size.", **_IMAGE},
        "device": {"help": "auto, cpu, cuda or cuda:N.", "metavar": "NAME", **_IMAGE},
    },
)  # fmt: skip
def plot(
    file: Annotated[
        str, typer.Argument(help="An image, or a cache.", metavar="IMAGE|FILE.h5", show_default="")
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="The picture to write.", metavar="FILE.png|svg|pdf")
    ],
    *,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            "--layer",
            help="Layers, comma separated; for an image those with maps, such as conv1_2,pool5. "
            "[default: for an image the last convolution of each block, for a cache all]",
            metavar="NAME,...",
        ),
    ] = None,
    channels: Annotated[
        str | None,
        _choice(
            "Show the mean of all channels, the N with the largest mean, or these channels. "
            "[default: mean]",
            "mean|top:N|N,...",
            OF_IMAGE,
            "mean",
        ),
    ] = None,
    overlay: Annotated[
        bool,
        typer.Option("--overlay", help="Lay the maps over the image.", rich_help_panel=OF_IMAGE),
    ] = False,
    config: Annotated[
        str | None,
        _choice(
            "A TOML file that says how images are prepared, as stats writes it for extract; "
            "options override it.",
            "FILE.toml",
            OF_IMAGE,
        ),
    ] = None,
    projection: Annotated[
        str | None,
        _choice(
            "How images are projected to two dimensions: pca, or umap (needs vggfeat[umap]). "
            "[default: pca]",
            "pca|umap",
            OF_CACHE,
            "pca",
            "umap",
        ),
    ] = None,
    marks: Annotated[
        str | None,
        _choice(
            "Draw thumbnails of the images whose files are found, or dots coloured by folder. "
            "[default: thumbnails]",
            "thumbnails|folders",
            OF_CACHE,
            "thumbnails",
            "folders",
        ),
    ] = None,
    sample: Annotated[
        int | None,
        _choice(
            "Project at most N images, spread over the cache. [default: 1000]",
            "N",
            OF_CACHE,
        ),
    ] = None,
    root: Annotated[
        str | None,
        _choice("Directory where the images are now. [default: where they were]", "DIR", OF_CACHE),
    ] = None,
    **network: Any,
) -> None:
    """Plot feature maps of an image, or a cache.

    For an image: its feature maps, each with its own scale. For a cache: for each layer a histogram
    of its values and a 2-D projection of its images, similar images near one another. Needs
    matplotlib: vggfeat[plot].
    """
    options = {name: value for name, value in locals().items() if name != "network"} | network
    given = {name: one for name, one in options.items() if one is not None and one is not False}
    with exit_codes():
        from vggfeat.extraction.monitoring import publish
        from vggfeat.visualization.figure_files import chart_format, check_matplotlib, to_bytes

        set_up_logging(quiet=False, verbose=False)
        form = chart_format(out)  # before the work rather than after it
        check_matplotlib()
        figure = _of_cache(given) if _is_cache(file) else _of_image(given)
        publish(out, to_bytes(figure, form))
        say(f"{out}: {file}")


def _is_cache(file: str) -> bool:
    """Return whether a file is a cache, or is meant to be one and should be refused as one."""
    from vggfeat.storage.hdf5_metadata.reader import has_signature

    if os.path.isdir(file):
        return True  # of shards; a folder is no image
    return file.lower().endswith(_CACHE_ENDINGS) or (os.path.isfile(file) and has_signature(file))


def _refuse(given: Mapping[str, Any], names: tuple[str, ...], what: str) -> None:
    wrong = [f"--{name}" for name in names if name in given]
    if wrong:
        raise UsageError(f"{', '.join(wrong)} is for {what}, and {given['file']!r} is not one")


def _of_image(given: Mapping[str, Any]) -> Figure:
    _refuse(given, _FOR_CACHES, "caches")
    from vggfeat.config import load_config, make_settings
    from vggfeat.visualization.feature_maps import (
        MEAN,
        check_map_channels,
        last_convolutions,
        parse_channels,
        see,
    )
    from vggfeat.visualization.plot_feature_maps import draw_maps

    channels = parse_channels(given.get("channels", MEAN))
    network = {name: given[name] for name in _FOR_IMAGES[3:] if name in given}
    config = given.get("config")
    read = load_config(config) if config is not None else {}
    named = given.get("layers", read.get("layers"))
    settings = make_settings(config, {**network, "layers": named or "pool5"})
    if named is None:
        settings = replace(settings, layers=last_convolutions(settings.model))
    check_map_channels(channels, settings)
    return draw_maps(see(given["file"], settings), channels, overlay="overlay" in given)


def _of_cache(given: Mapping[str, Any]) -> Figure:
    _refuse(given, _FOR_IMAGES, "images")
    from vggfeat.cache.sharded import open_cache
    from vggfeat.visualization.plot_cache import check_marks, draw_cache
    from vggfeat.visualization.projections import check_projection, view_cache

    projection = check_projection(given.get("projection", "pca"))
    marks = check_marks(given.get("marks", "thumbnails"))
    cache = open_cache(given["file"])
    sample = {"sample": given["sample"]} if "sample" in given else {}
    view = view_cache(cache, layers=given.get("layers"), projection=projection, **sample)
    return draw_cache(view, marks=marks, root=given.get("root"))
