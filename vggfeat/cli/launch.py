"""From the options of `vggfeat extract` to the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggfeat.cli.extract_report import show
from vggfeat.cli.terminal import Bar
from vggfeat.errors import InterruptedRunError, ShardsHeldError, TooManyFailuresError, UsageError

if TYPE_CHECKING:
    from vggfeat.cache.sharding import Sharding
    from vggfeat.cli.monitoring import Watch
    from vggfeat.core.records import Progress
    from vggfeat.core.settings import Settings
    from vggfeat.extraction.ray_cluster import RayCluster
    from vggfeat.extraction.update import UpdatePolicy

ENGINES = ("local", "ray")


def make_wish(*, fresh: bool, update: bool, by_digest: bool, retry: bool) -> UpdatePolicy:
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


def make_cluster(engine: str, *, actors: int | None, address: str | None) -> RayCluster | None:
    """Where `--engine`, `--actors` and `--address` have the work done; None for this process.

    Raises:
        UsageError: there is no such engine, or they do not go together.
    """
    from vggfeat.extraction.ray_cluster import RayCluster

    if engine not in ENGINES:
        raise UsageError(f"engine is {engine!r}; expected {' or '.join(ENGINES)}")
    if engine == "ray":
        return RayCluster(address, actors)
    if actors is not None or address is not None:
        raise UsageError("--actors and --address are of a cluster; give --engine ray with them")
    return None


def launch(
    sources: list[str],
    out: str,
    settings: Settings,
    watch: Watch,
    *,
    fresh: bool,
    wish: UpdatePolicy,
    root: str | None,
    sharding: Sharding,
    scratch: str | None,
    cluster: RayCluster | None,
    quiet: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Runs the extraction, shows its progress, and then what it came to."""
    from vggfeat.extraction.api import extract as extract_images

    bar = Bar(quiet=quiet or as_json)

    def notice(progress: Progress) -> None:
        bar.update(progress)
        watch.update(progress)

    try:
        watch.summary = extract_images(
            sources,
            out,
            settings,
            fresh=fresh,
            wish=wish,
            root=root,
            on_progress=notice,
            sharding=sharding,
            scratch=scratch,
            cluster=cluster,
        )
    except (InterruptedRunError, ShardsHeldError, TooManyFailuresError) as error:
        watch.summary = error.summary
        raise
    finally:
        bar.close()
        if watch.summary is not None:
            show(watch.summary, fresh=fresh, quiet=quiet, as_json=as_json, verbose=verbose)
