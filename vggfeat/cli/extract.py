"""`vggfeat extract`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggfeat.cache.sharding import Sharding
from vggfeat.cli.extract_report import summary_lines
from vggfeat.cli.options import Config, Json, Quiet, Root, Verbose, among, given, settings_options
from vggfeat.cli.terminal import ROWS_KEPT, Bar, exit_codes, set_up_logging, show
from vggfeat.config import make_settings
from vggfeat.core.option import FAILURES, MACHINES, REPORTING, RESUMING
from vggfeat.errors import InterruptedRunError, ShardsHeldError, TooManyFailuresError, UsageError

if TYPE_CHECKING:
    from vggfeat.core.records import Progress
    from vggfeat.extraction.ray_cluster import RayCluster
    from vggfeat.extraction.update import UpdatePolicy

_ENGINES = ("local", "ray")
EXAMPLES = (
    "vggfeat extract photos --layers conv5_3,fc7 --out feats.h5",
    "vggfeat extract photos --config same-picture --out feats.h5",
    "vggfeat extract photos --layers fc7 --out feats.h5 --update",
)


@settings_options(
    "layers", "fuse", "config", "model", "weights", "transform", "pool", "norm", "size", "resize",
    "crop", "exif", "icc", "decode", "augment", "channels", "first_layer", "depth", "window",
    "clip", "clahe", "mean", "std", "dtype", "precision", "device", "batch_size", "workers",
    "max_pixels", "decode_timeout", "max_failures", "max_removed", "on_error", "time_limit",
    "checkpoint_seconds",
)  # fmt: skip
def extract(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders (with all folders below), image files, tar and zip archives, @list.txt, "
            "- for a list on stdin, or s3://BUCKET/FOLDER.",
            metavar="SOURCE...",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="The cache to create or resume: a file, or a folder of shards; either also as "
            "s3://BUCKET/NAME.",
            metavar="FILE.h5|DIR/",
        ),
    ],
    *,
    config: Config = None,
    root: Root = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--fresh",
            help="Resume the cache if it exists, or create it again. The same command resumes an "
            "interrupted run, also one with --fresh.",
            rich_help_panel=RESUMING,
        ),
    ] = True,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Add images that are new, redo those that changed, remove those gone.",
            rich_help_panel=RESUMING,
        ),
    ] = False,
    by_digest: Annotated[
        bool,
        typer.Option(
            "--by-digest",
            help="With --update: detect changes by the content of files, not by size and time.",
            rich_help_panel=RESUMING,
        ),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Try images again that failed in earlier runs.",
            rich_help_panel=FAILURES,
        ),
    ] = False,
    shards: Annotated[
        int | None,
        typer.Option(
            help="Split a new cache, a folder, into N files. [default: N of --shard, or one for "
            "each 100000 images]",
            metavar="N",
            rich_help_panel=MACHINES,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Process only shards whose number modulo N is I, from 0. The first process to "
            "start lists the images.",
            metavar="I/N",
            rich_help_panel=MACHINES,
        ),
    ] = None,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan-only",
            help="List the images of a sharded cache; process none.",
            rich_help_panel=MACHINES,
        ),
    ] = False,
    scratch: Annotated[
        str | None,
        typer.Option(
            help="Folder in which an output in an object store, s3://..., is written before its "
            "upload. [default: in the user's cache]",
            metavar="DIR",
            rich_help_panel=MACHINES,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="Run in this process (local), or process shards on a Ray cluster (ray).",
            metavar="local|ray",
            autocompletion=among(*_ENGINES),
            rich_help_panel=MACHINES,
        ),
    ] = "local",
    actors: Annotated[
        int | None,
        typer.Option(
            help="With ray: number of actors. [default: one for each GPU, or without any one for "
            "each node]",
            metavar="N",
            rich_help_panel=MACHINES,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="With ray: an existing cluster, auto or HOST:PORT. [default: start one here]",
            metavar="ADDRESS",
            rich_help_panel=MACHINES,
        ),
    ] = None,
    failures: Annotated[
        str | None,
        typer.Option(
            help="Write failed images and their reasons to this file.",
            metavar="FILE.csv",
            rich_help_panel=FAILURES,
        ),
    ] = None,
    metrics_file: Annotated[
        str | None,
        typer.Option(
            help="Write metrics for Prometheus to this file, every 15 seconds and at the end.",
            metavar="FILE.prom",
            rich_help_panel=REPORTING,
        ),
    ] = None,
    log_file: Annotated[
        str | None,
        typer.Option(
            help="Append log lines to this file, as JSON if it ends in .json or .jsonl.",
            metavar="FILE",
            rich_help_panel=REPORTING,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    **flags: Any,
) -> None:
    """Extract features of images into a cache, or resume it.

    If the command is killed at any instant, the same command resumes it, and the resulting file is
    the same. An image that cannot be read becomes a row marked failed, with the reason.
    """
    with exit_codes(ROWS_KEPT):
        set_up_logging(quiet=quiet or as_json, verbose=verbose)
        from vggfeat.cli.monitoring import Watch
        from vggfeat.core.resources import keep_freed_memory
        from vggfeat.extraction.api import extract as extract_images
        from vggfeat.extraction.api import working_place
        from vggfeat.storage.paths import path_text

        out = path_text(out)
        sharding = Sharding(shards, shard or "", plan_only)
        reports = Watch(
            out, failures=failures, metrics=metrics_file, log_file=log_file,
            share=sharding.share, work=working_place(out, scratch),
        )  # fmt: skip
        with reports as watch:
            settings = make_settings(config, given(flags))
            if settings.workers != 0:  # with 0, images of any size are decoded in this process
                keep_freed_memory()
            policy = _update_policy(
                fresh=not resume, update=update, by_digest=by_digest, retry=retry_failed
            )
            cluster = _cluster(engine, actors=actors, address=address)
            try:
                with Bar(quiet=quiet or as_json) as bar:

                    def on_progress(progress: Progress) -> None:
                        bar.update(progress)
                        watch.update(progress)

                    watch.summary = extract_images(
                        sources, out, settings, fresh=not resume, policy=policy, root=root,
                        sharding=sharding, scratch=scratch, cluster=cluster,
                        on_progress=on_progress,
                    )  # fmt: skip
            except (InterruptedRunError, ShardsHeldError, TooManyFailuresError) as error:
                watch.summary = error.summary
                raise
            finally:
                if watch.summary is not None:
                    lines = functools.partial(summary_lines, verbose=verbose)
                    show(watch.summary, lines, as_json=as_json, quiet=quiet)


def _update_policy(*, fresh: bool, update: bool, by_digest: bool, retry: bool) -> UpdatePolicy:
    from vggfeat.extraction.update import UpdatePolicy

    if by_digest and not update:
        raise UsageError("--by-digest says how --update finds changed images; give both")
    if fresh and (update or retry):
        raise UsageError("--fresh redoes every image; give it without --update, --retry-failed")
    return UpdatePolicy(update=update, by_digest=by_digest, retry_failed=retry)


def _cluster(engine: str, *, actors: int | None, address: str | None) -> RayCluster | None:
    """Return the cluster of `--engine`, `--actors` and `--address`; None for this process."""
    from vggfeat.extraction.ray_cluster import RayCluster

    if engine not in _ENGINES:
        raise UsageError(f"engine is {engine!r}; expected {' or '.join(_ENGINES)}")
    if engine == "ray":
        return RayCluster(address, actors)
    if actors is not None or address is not None:
        raise UsageError("--actors and --address are of a cluster; give --engine ray with them")
    return None
