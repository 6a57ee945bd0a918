"""`vggfeat zeroshot fit`, `predict` and `evaluate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vggfeat.cli.help_page import Command, Group
from vggfeat.cli.options import (
    Cache,
    Csv,
    Device,
    Json,
    ModelWeights,
    Quiet,
    Use,
    given,
    settings_options,
    whole_numbers,
)
from vggfeat.cli.terminal import (
    check_one_form,
    exit_codes,
    print_csv,
    print_json,
    say,
    set_up_logging,
    show,
    tell_warning,
)
from vggfeat.core.option import options_of
from vggfeat.zeroshot.settings import ZeroShotSettings

zeroshot = typer.Typer(
    name="zeroshot",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Recognize classes without training images.\n\n"
    "A class is known by the vector of its name, or by its attributes.",
)

Model = Annotated[str, typer.Argument(help="A model of vggfeat zeroshot fit.", metavar="MODEL.h5")]


_FITS = (
    "vggfeat zeroshot fit feats.h5 --vectors attributes.csv --out model.h5",
    "vggfeat zeroshot fit feats.h5 --vectors glove.txt --labels labels.csv --out model.h5",
    "vggfeat zeroshot fit feats.h5 --vectors glove.txt --unseen zebra,okapi --out model.h5",
)


@zeroshot.command(cls=Command, epilog="\n".join(_FITS))
@settings_options("vectors", "out", *options_of(ZeroShotSettings), "fresh", of=(ZeroShotSettings,))
def fit(
    cache: Cache,
    *,
    vectors: Annotated[
        str,
        typer.Option(
            help="Vectors of the classes: word2vec (text or binary) or GloVe, also .gz; or a table "
            "of attributes or sentence vectors, .csv, .tsv, .npz, .npy with names in a .txt beside "
            "it, att_splits.mat, predicate-matrix-*.txt.",
            metavar="FILE",
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="The model file to create.", metavar="MODEL.h5")
    ],
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Fit again, even if the model file exists.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    **settings: Any,
) -> None:
    """Learn to match images and class vectors.

    The model is fitted to images of seen classes. Its file appears whole or not at all. If it
    exists and was fitted to the same images and vectors with the same options, nothing is done.
    """
    with exit_codes():
        set_up_logging(quiet=quiet or as_json, verbose=False)
        from vggfeat.cli.zeroshot_report import fitting_lines
        from vggfeat.zeroshot.fit import fit_zeroshot

        done = fit_zeroshot(cache, vectors, out, ZeroShotSettings(**given(settings)), fresh=fresh)
        show(done, fitting_lines, as_json=as_json, quiet=quiet)


@zeroshot.command(cls=Command)
def predict(
    model: Model,
    cache: Annotated[
        str,
        typer.Argument(
            help="Cache of the images; with IMAGE... the cache whose network and preprocessing "
            "they go through.",
            metavar="FILE.h5",
        ),
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, folders or archives, instead of the images of the cache.",
            metavar="[IMAGE...]",
        ),
    ] = None,
    *,
    classes: Annotated[
        str,
        typer.Option(
            help="Candidate classes: all, seen or unseen ones of the model; or a file with one a "
            "line, or names separated by commas.",
            metavar="WHICH",
        ),
    ] = "all",
    vectors: Annotated[
        str | None, typer.Option(help="Vectors of --classes that the model lacks.", metavar="FILE")
    ] = None,
    top: Annotated[int, typer.Option(help="Classes to show for each image.", metavar="K")] = 5,
    calibrate: Annotated[
        str,
        typer.Option(
            help="Subtract a bias from the scores of seen classes: a number, or auto for the one "
            "found when the model was fitted.",
            metavar="X|auto",
        ),
    ] = "0",
    device: Device = "auto",
    weights: ModelWeights = None,
    use: Use = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Predict the classes of images, best first.

    A class needs no image: give the vector of a new one by --classes with --vectors.
    """
    with exit_codes():
        set_up_logging(quiet=as_json or as_csv, verbose=False)
        from vggfeat.cli.zeroshot_report import prediction_lines, prediction_rows, predictions_plain
        from vggfeat.zeroshot.predict import predict_zeroshot

        check_one_form(as_json=as_json, as_csv=as_csv)
        found = predict_zeroshot(
            model, cache, images or (), classes=classes, vectors=vectors, top=top,
            calibrate=calibrate, device=device, weights=weights, use=use or (),
        )  # fmt: skip
        for failure in found.failures:
            tell_warning(f"image {failure.path}: {failure.reason}")
        if as_json:
            print_json(predictions_plain(found))
        elif as_csv:
            print_csv(prediction_rows(found))
        else:
            say(*prediction_lines(found))


@zeroshot.command(cls=Command)
@settings_options(
    "labels",
    "tree",
    of=(ZeroShotSettings,),
    instead={"tree": {"help": "Class tree: a CSV file of child,parent.", "unset": "the model's"}},
)
def evaluate(
    model: Model,
    cache: Cache,
    *,
    top: Annotated[
        str,
        typer.Option(
            help="Count an image as right if its class is among the first K.", metavar="K,..."
        ),
    ] = "1,5",
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="Also show accuracies with a bias subtracted from the scores of seen classes: a "
            "number, or auto for the one found when the model was fitted.",
            metavar="X|auto",
        ),
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
    **known: Any,
) -> None:
    """Evaluate a model beside chance and other baselines.

    Only images that it was not trained on count. Accuracies are averaged over classes: of unseen
    classes among themselves, and of seen and unseen classes among all, with their harmonic mean H.
    With a tree, show how far off mistakes are.
    """
    with exit_codes():
        set_up_logging(quiet=as_json or as_csv, verbose=False)
        from vggfeat.cli.zeroshot_report import evaluation_lines, evaluation_rows
        from vggfeat.zeroshot.evaluate import evaluate_zeroshot

        check_one_form(as_json=as_json, as_csv=as_csv)
        ranks = whole_numbers("top", top, "1,5")
        found = evaluate_zeroshot(model, cache, top=ranks, calibrate=calibrate, **known)
        if as_csv:
            print_csv(evaluation_rows(found))
        else:
            show(found, evaluation_lines, as_json=as_json)
