"""`vggfeat reduce`."""

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
from vggfeat.core.fusion_spec import FINAL_NORMS
from vggfeat.core.layer_spec import NORMS
from vggfeat.errors import UsageError


def reduce(
    source: Source,
    out: Out,
    *,
    layers: Layers = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="pca, fewer dimensions; standard, each dimension to mean 0 and deviation 1; keep, "
            "as they are, to change the dtype or the norm alone. [default: pca]",
            metavar="METHOD",
        ),
    ] = None,
    dims: Annotated[
        str | None,
        typer.Option(
            help="Dimensions to keep, or the share of the variance, as 95%. [default: 128]",
            metavar="N|P%",
        ),
    ] = None,
    whiten: Annotated[
        bool, typer.Option("--whiten", help="Bring the dimensions kept to equal variance.")
    ] = False,
    norm: Annotated[
        str | None,
        typer.Option(
            help=f"Of each vector before: {', '.join(NORMS)}. [default: none]", metavar="NORM"
        ),
    ] = None,
    final_norm: Annotated[
        str | None,
        typer.Option(
            help=f"Of each vector afterwards: {', '.join(FINAL_NORMS)}. [default: l2 with "
            "--whiten, else none]",
            metavar="NORM",
        ),
    ] = None,
    dtype: Dtype = "float16",
    use: Use = None,
    save: Save = None,
    resume: Fresh = True,
    update: Update = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Shorten the vectors of a cache by PCA, with whitening or without, or standardise them.

    Fitted in a stream to every layer by itself; the cache may be larger than memory. What was
    fitted is kept in a model file, and --use applies it to other caches.
    """
    with exit_codes():
        set_up_logging(quiet=quiet or as_json, verbose=False)
        from vggfeat.transforms.reduce import ReduceSettings
        from vggfeat.transforms.reduce import reduce as reduce_cache

        given = {
            "layers": layers,
            "method": method,
            "dims": _dims(dims) if dims is not None else None,
            "whiten": whiten or None,
            "norm": norm,
            "final_norm": final_norm,
        }
        run(
            reduce_cache,
            ReduceSettings,
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


def _dims(text: str) -> int | float:
    """`128` as a number of dimensions, `95%` as a share of the variance."""
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
            if 0 < share < 1:
                return share
        elif int(text) >= 1:
            return int(text)
    except ValueError:
        pass
    raise UsageError(f"dims {text!r}: expected a whole number such as 128, or a share such as 95%")
