"""`vggfeat extract`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggfeat.cache.sharding import Sharding
from vggfeat.cli.extract_report import show
from vggfeat.cli.options import given, settings_options
from vggfeat.cli.terminal import Bar, Quiet, exit_codes, set_up_logging
from vggfeat.config import PRESETS, make_settings
from vggfeat.errors import InterruptedRunError, ShardsHeldError, TooManyFailuresError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.cli.monitoring import Watch
    from vggfeat.core.records import Progress, Summary
    from vggfeat.extraction.ray_cluster import RayCluster
    from vggfeat.extraction.update import UpdatePolicy

_ENGINES = ("local", "ray")


@settings_options(
    "layers", "fuse", "config", "model", "weights", "transform", "pool", "norm", "size", "resize",
    "crop", "exif", "decode", "augment", "channels", "first_layer", "depth", "window", "clip",
    "clahe", "mean", "std", "dtype", "precision", "device", "batch_size", "workers", "max_pixels",
    "decode_timeout", "max_failures", "max_removed", "on_error", "time_limit", "checkpoint_seconds",
)  # fmt: skip
def extract(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders (with all below them), image files, tar and zip archives, @list.txt, - "
            "for a list on stdin, or s3://BUCKET/FOLDER.",
            metavar="SOURCE...",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="The cache to create or resume: a file, or a folder for a sharded one; or "
            "either as s3://BUCKET/NAME.",
            metavar="FILE.h5|DIR/",
        ),
    ],
    *,
    config: Annotated[
        str | None,
        typer.Option(
            help=f"A TOML file or a preset ({', '.join(PRESETS)}); flags override what it says. "
            "Keys are the names of options, as batch-size or batch_size.",
            metavar="NAME|FILE.toml",
            show_default=False,
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(
            help="Directory that the recorded paths are relative to. [default: the source folder, "
            "or what all sources have in common]",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--fresh",
            help="Resume FILE.h5 if it exists, or create it again. Interrupted, the same "
            "command without --fresh does the rest; with it, it begins again.",
        ),
    ] = True,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Bring in images that are new, have changed, or are gone since."
        ),
    ] = False,
    by_digest: Annotated[
        bool,
        typer.Option(
            "--by-digest",
            help="With --update: go by the files' contents, not by their size and time.",
        ),
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try images again that failed before.")
    ] = False,
    shards: Annotated[
        int | None,
        typer.Option(
            help="Split a new cache, a folder, into N files. [default: N of --shard, else one for "
            "each 100000 images]",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Of a folder do only the share I of N, counted from 0: shards whose number mod N "
            "is I. Whoever comes first makes the plan.",
            metavar="I/N",
            show_default=False,
        ),
    ] = None,
    plan_only: Annotated[
        bool,
        typer.Option("--plan-only", help="Of a folder list the images, and do none of them yet."),
    ] = False,
    scratch: Annotated[
        str | None,
        typer.Option(
            help="Where an output in an object store, s3://..., is made before it is put there. "
            "[default: in the user's cache]",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="local does the work here, ray by shards on a Ray cluster.", metavar="E"),
    ] = "local",
    actors: Annotated[
        int | None,
        typer.Option(
            help="With ray: how many. [default: one a GPU, without any one a node]",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="With ray: a cluster that is there, auto or HOST:PORT. [default: one of its own, "
            "here]",
            metavar="ADDRESS",
            show_default=False,
        ),
    ] = None,
    failures: Annotated[
        str | None,
        typer.Option(
            help="Write all failed images and their reasons here, as CSV.",
            metavar="FILE.csv",
            show_default=False,
        ),
    ] = None,
    metrics_file: Annotated[
        str | None,
        typer.Option(
            help="Write figures for Prometheus here, every 15 seconds and at the end.",
            metavar="FILE.prom",
            show_default=False,
        ),
    ] = None,
    log_file: Annotated[
        str | None,
        typer.Option(
            help="Append log lines to this file, as JSON if it ends in .json or .jsonl.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON.")] = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also where each second went.")
    ] = False,
    **flags: Any,
) -> None:
    """Extract features of images into a cache, or go on with one.

    Killed at any instant, the same command again does what is left, and the result is the same
    file. An image that cannot be read becomes a row marked failed, with the reason.
    """
    with exit_codes():
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
            if settings.workers != 0:  # without any, images are decoded here, whose memory differs
                keep_freed_memory()
            run = functools.partial(
                extract_images,
                sources,
                out,
                settings,
                fresh=not resume,
                policy=_make_policy(
                    fresh=not resume, update=update, by_digest=by_digest, retry=retry_failed
                ),
                root=root,
                sharding=sharding,
                scratch=scratch,
                cluster=_make_cluster(engine, actors=actors, address=address),
            )
            tell = functools.partial(
                show, fresh=not resume, quiet=quiet, as_json=as_json, verbose=verbose
            )
            _run(run, watch, Bar(quiet=quiet or as_json), tell)


def _make_policy(*, fresh: bool, update: bool, by_digest: bool, retry: bool) -> UpdatePolicy:
    """What `--update`, `--by-digest` and `--retry-failed` come to.

    Raises:
        UsageError: they do not go together.
    """
    from vggfeat.extraction.update import UpdatePolicy

    if by_digest and not update:
        raise UsageError("--by-digest says how --update finds changed images; give both")
    if fresh and (update or retry):
        raise UsageError("--fresh does every image anew; give it without --update, --retry-failed")
    return UpdatePolicy(update=update, by_digest=by_digest, retry_failed=retry)


def _make_cluster(engine: str, *, actors: int | None, address: str | None) -> RayCluster | None:
    """Where `--engine`, `--actors` and `--address` have the work done; None for this process.

    Raises:
        UsageError: there is no such engine, or they do not go together.
    """
    from vggfeat.extraction.ray_cluster import RayCluster

    if engine not in _ENGINES:
        raise UsageError(f"engine is {engine!r}; expected {' or '.join(_ENGINES)}")
    if engine == "ray":
        return RayCluster(address, actors)
    if actors is not None or address is not None:
        raise UsageError("--actors and --address are of a cluster; give --engine ray with them")
    return None


def _run(
    run: Callable[..., Summary], watch: Watch, bar: Bar, tell: Callable[[Summary], None]
) -> None:
    """Run the extraction, show its progress, and then what came of it, however it ends."""

    def notice(progress: Progress) -> None:
        bar.update(progress)
        watch.update(progress)

    try:
        watch.summary = run(on_progress=notice)
    except (InterruptedRunError, ShardsHeldError, TooManyFailuresError) as error:
        watch.summary = error.summary
        raise
    finally:
        bar.close()
        if watch.summary is not None:
            tell(watch.summary)
