"""Output of the zero-shot commands: lines for people, CSV, plain values for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vggfeat.cli.terminal import table
from vggfeat.core.csv_text import path_cell, text_cell
from vggfeat.core.text import counted, duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vggfeat.zeroshot.class_tree import TreeMistakes
    from vggfeat.zeroshot.evaluate import Evaluation, Figure, Generalised
    from vggfeat.zeroshot.fit import ZeroShotFitReport
    from vggfeat.zeroshot.predict import Predictions

_NAMES_SHOWN = 8


def fitting_lines(done: ZeroShotFitReport) -> list[str]:
    """Describe a fit."""
    this_run = f"fitted in {duration(done.seconds)}" if done.anew else "fitted already"
    layers = ", ".join(done.layers)
    images = f"{counted(done.images, 'image')}, {done.held_out} held out for evaluate"
    what = f"{done.method} on {layers}, {counted(done.dims, 'number')} a class"
    lines = [
        f"{done.out}: {what}, {this_run}",
        f"  seen     {counted(len(done.seen), 'class')}, {images}",
        f"  unseen   {counted(len(done.unseen), 'class')}{_names(done.unseen)}",
    ]
    lines.insert(1, f"  vectors  {'centered' if done.centered else 'not centered'}, of unit length")
    if done.calibration is not None:
        lines.append(f"  bias     {done.calibration:.4g} of seen classes, for --calibrate auto")
    return [*lines, *(f"  note     {note}" for note in done.notes)]


def _names(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return f": {', '.join(names[:_NAMES_SHOWN])}{more}"


def prediction_lines(found: Predictions) -> Iterator[str]:
    """Yield a line for each image."""
    classes = f"{counted(len(found.names), 'class')}{_names(found.names)}"
    what = "raw scores" if found.probabilities is None else "probabilities among these"
    yield f"{counted(len(found.paths), 'image')}, each one of {classes}; {what}"
    for position, path in enumerate(found.paths):
        figures = found.figures[position].tolist()
        named = zip(found.of(position), figures, strict=True)
        answers = ", ".join(f"{name} {figure:.3f}" for (name, _), figure in named)
        yield f"  {path}: {answers}"


def prediction_rows(found: Predictions) -> Iterator[Sequence[object]]:
    """Yield a row of CSV for each image and class, after the head."""
    yield "path", "rank", "class", "score", "probability"
    for position, path in enumerate(found.paths):
        for rank, (name, score) in enumerate(found.of(position), 1):
            share = _share(found, position, rank)
            said = "" if share is None else f"{share:.7g}"
            yield path_cell(path), rank, text_cell(name), f"{score:.7g}", said


def _share(found: Predictions, position: int, rank: int) -> float | None:
    """Return the probability of an answer, of which the first has rank 1."""
    shares = found.probabilities
    return None if shares is None else float(shares[position, rank - 1])


def predictions_plain(found: Predictions) -> dict[str, Any]:
    """Return predictions as plain values, ready for JSON."""
    return {
        "model": found.model,
        "classes": list(found.names),
        "bias": found.bias,
        "images": [
            {
                "path": path,
                "classes": [
                    {"name": name, "score": score, "probability": _share(found, position, rank)}
                    for rank, (name, score) in enumerate(found.of(position), 1)
                ],
            }
            for position, path in enumerate(found.paths)
        ],
        "failures": found.failures,
    }


_HEAD = ("images", "among", "top", "accuracy", "chance", "majority", "centroid")


def evaluation_lines(found: Evaluation) -> list[str]:
    """Return the tables of accuracies, of the generalised task, and of the tree."""
    cells = [_HEAD, *(_cells(figure) for figure in found.figures)]
    both = (found.generalised, found.calibrated)
    seen = f"{counted(found.seen_images, 'image')} of {counted(found.seen_classes, 'seen class')}"
    unseen = f"{found.unseen_images} of {counted(found.unseen_classes, 'unseen one')}"
    lines = [
        f"{found.model} on {found.cache}, accuracy averaged over classes",
        f"  {seen}, {unseen}",
        *(f"  {line}" for line in table(cells, "llrrrrr")),
        *_baseline_lines(found),
        *(_generalised(one) for one in both if one is not None),
    ]
    if found.area is not None:
        lines.append(f"  area under seen over unseen accuracy, all biases: {found.area:.3f}")
    if found.mistakes:
        lines += ["", *(f"  {line}" for line in _tree_lines(found.mistakes))]
    return [*lines, *(f"  note: {note}" for note in found.notes)]


def _cells(figure: Figure) -> tuple[str, ...]:
    shares = (figure.accuracy, figure.chance, figure.majority, figure.class_mean)
    return (
        figure.of,
        figure.among,
        str(figure.top),
        *("-" if share is None else f"{share:.3f}" for share in shares),
    )


def _baseline_lines(found: Evaluation) -> list[str]:
    """Return a table of other ways to answer with unseen classes, beside the model's."""
    mine = [figure for figure in found.figures if figure.nearest is not None]
    if not mine:
        return []
    words = f"{found.neighbors} words" if found.neighbors > 1 else ""
    head = ("top", "chance", "nearest word", words, "ridge", f"model ({found.method})")
    rows = [
        (
            str(one.top),
            f"{one.chance:.3f}",
            *("-" if share is None else f"{share:.3f}" for share in (one.nearest, one.nearest_few)),
            "-" if one.ridge is None else f"{one.ridge:.3f}",
            f"{one.accuracy:.3f}",
        )
        for one in mine
    ]
    kept = [at for at, name in enumerate(head) if name]
    cells = [[row[at] for at in kept] for row in (head, *rows)]
    title = "  unseen among unseen, beside simple baselines with the same class vectors"
    return ["", title, *(f"  {line}" for line in table(cells, "r" * len(kept))), ""]


def _generalised(one: Generalised) -> str:
    bias = f" with bias {one.bias:.4g}" if one.bias else ""
    return (
        f"  among all{bias}: seen {one.seen:.3f}, unseen {one.unseen:.3f}, harmonic mean H "
        f"{one.harmonic:.3f}"
    )


def _tree_lines(mistakes: Sequence[TreeMistakes]) -> list[str]:
    head = ("images", "among", "hops", "guessed", "of mistakes", "height", "images by hops")
    rows = [
        (
            one.of,
            one.among,
            f"{one.hops:.2f}",
            f"{one.hops_guessed:.2f}",
            "-" if one.hops_of_mistakes is None else f"{one.hops_of_mistakes:.2f}",
            "-" if one.height_of_mistakes is None else f"{one.height_of_mistakes:.2f}",
            " ".join(f"{hops}:{count}" for hops, count in enumerate(one.histogram) if count),
        )
        for one in mistakes
    ]
    return ["distance in the class tree of the first answer", *table([head, *rows], "llrrrrl")]


def evaluation_rows(found: Evaluation) -> list[Sequence[object]]:
    """Return a row of CSV for each figure, after the head."""
    rows: list[Sequence[object]] = [("figure", "images", "among", "top", "bias", "value")]
    for one in found.figures:
        values = {
            "accuracy": one.accuracy,
            "chance": one.chance,
            "majority": one.majority,
            "class mean": one.class_mean,
            "nearest class's word": one.nearest,
            f"words of {found.neighbors} nearest": one.nearest_few,
            "ridge": one.ridge,
        }
        rows += [
            (name, one.of, one.among, one.top, 0.0, f"{value:.6f}")
            for name, value in values.items()
            if value is not None
        ]
    for both in (found.generalised, found.calibrated):
        if both is not None:
            named = {"seen": both.seen, "unseen": both.unseen, "harmonic mean": both.harmonic}
            rows += [(name, "", "all", 1, both.bias, f"{v:.6f}") for name, v in named.items()]
    if found.area is not None:
        rows.append(("area", "", "all", 1, "", f"{found.area:.6f}"))
    rows += [("hops", one.of, one.among, 1, 0.0, f"{one.hops:.6f}") for one in found.mistakes]
    return rows
