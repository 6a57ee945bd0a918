"""`vggfeat fuse`."""

from __future__ import annotations

from typing import Annotated

import typer

from vggfeat.cli.terminal import Quiet, exit_codes, set_up_logging
from vggfeat.cli.transform_options import (
    Dtype,
    Fresh,
    Json,
    Layers,
    Out,
    Save,
    Source,
    Update,
    Use,
    run,
)
from vggfeat.core.fusion_spec import FINAL_NORMS, METHODS, ROW_NORMS, parse_weights


def fuse(
    source: Source,
    out: Out,
    *,
    layers: Layers = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(METHODS)}: joined end to end; so, with weights; added; so "
            "joined that each image weighs its layers itself. [default: concat]",
            metavar="METHOD",
        ),
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(
            help=f"Of each layer before: {', '.join(ROW_NORMS)}. [default: l2]", metavar="NORM"
        ),
    ] = None,
    final_norm: Annotated[
        str | None,
        typer.Option(
            help=f"Of the fused vector: {', '.join(FINAL_NORMS)}. [default: l2]", metavar="NORM"
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Weight of each layer, as 2,1,1; equal if not given.", metavar="N,..."),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="Of sum: project layers to this width by PCA first.", metavar="N"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the new layer. [default: the method]", metavar="NAME"),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Learn the weights from labels: a CSV file of path,label, or `folders`.",
            metavar="FILE.csv|folders",
        ),
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            help="Learn the weights from altered versions of the same images (extract --augment); "
            "may be given several times.",
            metavar="FILE.h5",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where to learn: auto, cpu, cuda, cuda:N or mps.", metavar="NAME"),
    ] = None,
    dtype: Dtype = "float16",
    use: Use = None,
    save: Save = None,
    resume: Fresh = True,
    update: Update = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make one vector an image of several layers, from a cache into another.

    Each layer is normalised by itself first, so that its range does not decide. The new cache has
    the same images, and the same command again does what is left.
    """
    with exit_codes():
        set_up_logging(quiet=quiet or as_json, verbose=False)
        from vggfeat.transforms.fuse import FuseSettings
        from vggfeat.transforms.fuse import fuse as fuse_cache

        given = {
            "layers": layers,
            "method": method,
            "norm": norm,
            "final_norm": final_norm,
            "weights": parse_weights(weights) if weights is not None else None,
            "width": width,
            "name": name,
            "labels": labels,
            "pairs": tuple(pairs) if pairs else None,
            "device": device,
        }
        run(
            fuse_cache,
            FuseSettings,
            given,
            source=source,
            out=out,
            use=use,
            save=save,
            dtype=dtype,
            resume=resume,
            update=update,
            as_json=as_json,
            quiet=quiet,
        )
