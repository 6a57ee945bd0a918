"""Model files of strangers: whatever they hold, applying them is one line and takes no memory."""

from __future__ import annotations

import copy
import shutil
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from zeroshot_caches import write_cache, write_vectors

from vggfeat.errors import CacheError
from vggfeat.transforms.fuse import from_fitted, fuse
from vggfeat.transforms.model_file import Fitted, check_complete, load_fitted
from vggfeat.transforms.reduce import reduce, reduction_from
from vggfeat.transforms.settings import FuseSettings, ReduceSettings
from vggfeat.zeroshot.fit import fit_zeroshot
from vggfeat.zeroshot.model import model_from
from vggfeat.zeroshot.predict import predict_zeroshot
from vggfeat.zeroshot.settings import ZeroShotSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAYERS = {"conv1_1": 64, "conv2_1": 128}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of two layers, and a model of each kind that was fitted to it."""
    folder = tmp_path_factory.mktemp("models")
    noise = np.random.default_rng(0)
    paths = [f"class{number // 4:02}/{number:02}.png" for number in range(24)]
    layers = {name: noise.random((24, width), np.float32) for name, width in LAYERS.items()}
    write_cache(folder / "f.h5", layers, paths)
    write_vectors(
        folder / "v.csv",
        noise.random((6, 5), np.float32),
        tuple(f"class{number:02}" for number in range(6)),
    )
    source = folder / "f.h5"
    reduce(source, folder / "r.h5", ReduceSettings(dims=3), save=folder / "reduce")
    fuse(source, folder / "u.h5", FuseSettings(method="sum", norm="standard", width=4),
         save=folder / "fuse")  # fmt: skip
    fit_zeroshot(source, folder / "v.csv", folder / "zeroshot", ZeroShotSettings(device="cpu"))
    return folder


def apply(kind: str, model: Path, source: Path, out: Path) -> None:
    """Applies a model to the cache that it was fitted to."""
    if kind == "reduce":
        reduce(source, out, use=model)
    elif kind == "fuse":
        fuse(source, out, use=model)
    else:
        predict_zeroshot(model, source)


def put(parameters: dict[str, Any], name: str, value: Any) -> None:
    """Sets a parameter, or `table/key` in one of them."""
    place, *rest = name.split("/")
    table = parameters[place] if rest else parameters
    table[rest[0] if rest else place] = value


ODD: tuple[Any, ...] = (None, "x", 7, [], {}, [1], [[1]], {"a": 1}, float("inf"), -1, ["x", "x"])
ARRAYS: dict[str, Callable[[Any], Any]] = {
    "missing": lambda one: one,
    "shorter": lambda one: one[:-1] if one.ndim else np.zeros(3),
    "wider": lambda one: np.zeros((*one.shape, 2), one.dtype),
    "text": lambda one: np.full(one.shape, b"abc"),
    "not finite": lambda one: np.full(one.shape, np.nan, np.float32),
    "scalar": lambda one: np.float32(1) if one.ndim else np.array([b"x"]),
    "complex": lambda one: one.astype(np.complex64),
}


BUILT: dict[str, Callable[[Fitted], object]] = {
    "reduce": reduction_from,
    "fuse": from_fitted,
    "zeroshot": model_from,
}


@pytest.mark.parametrize("kind", BUILT)
def test_arrays_that_do_not_fit_are_refused(kind: str, models: Path) -> None:
    """Every array of a model missing, of another shape or of another type is damage."""
    fitted = load_fitted(str(models / kind), kind)
    for name, array in fitted.arrays.items():
        for how, change in ARRAYS.items():
            if name == "trained" and how == "shorter":
                continue  # a model may have seen any number of images
            arrays = {**fitted.arrays, name: change(array)}
            if how == "missing":
                del arrays[name]
            with pytest.raises(CacheError, match=r"is damaged: "):
                BUILT[kind](Fitted(kind, fitted.parameters, arrays))


@pytest.mark.parametrize("kind", BUILT)
def test_an_array_that_claims_32_gib_is_refused(kind: str, models: Path, tmp_path: Path) -> None:
    """A shape of which nothing is stored takes no memory, and nothing is written."""
    shutil.copyfile(models / kind, tmp_path / "m")
    with h5py.File(tmp_path / "m", "r+") as file:
        name = next(name for name in file if file[name].ndim)
        del file[name]
        file.create_dataset(name, (2**32, 1), "f8", chunks=(1024, 1))
    with pytest.raises(CacheError, match=r"does not lie in one run|claims 34"):
        apply(kind, tmp_path / "m", models / "f.h5", tmp_path / "o.h5")
    assert not (tmp_path / "o.h5").exists()


@pytest.mark.parametrize("kind", BUILT)
def test_parameters_that_make_no_sense_are_refused(kind: str, models: Path) -> None:
    """Every parameter of a model of another type is damage, or does not matter."""
    fitted = load_fitted(str(models / kind), kind)
    names = [name for name in fitted.parameters if name != "asked"]
    names += [f"{name}/{key}" for name in names if isinstance(fitted.parameters[name], dict)
              for key in fitted.parameters[name]]  # fmt: skip
    refused = 0
    for name in names:
        for value in ODD:
            parameters = copy.deepcopy(dict(fitted.parameters))
            put(parameters, name, value)
            try:
                check_complete(parameters, "the model")
                BUILT[kind](Fitted(kind, parameters, fitted.arrays))
            except CacheError:
                refused += 1
    assert refused > len(names) * len(ODD) / 2


@pytest.mark.parametrize("text", ["[]", "7", '{"asked": 7}', "[" * 1000, "{", "9" * 5000, "null"])
def test_parameters_that_are_no_table_are_refused(text: str, models: Path, tmp_path: Path) -> None:
    """Parameters that are no JSON, or nest deep, are damage."""
    for kind in ("reduce", "fuse", "zeroshot"):
        shutil.copyfile(models / kind, tmp_path / "m")
        with h5py.File(tmp_path / "m", "r+") as file:
            file.attrs["parameters"] = text
        with pytest.raises(CacheError, match=r"is damaged"):
            apply(kind, tmp_path / "m", models / "f.h5", tmp_path / "o.h5")


def test_a_circle_in_the_tree_of_a_model_is_refused(models: Path) -> None:
    """Distances in such a tree would be looked for without end."""
    fitted = load_fitted(str(models / "zeroshot"), "zeroshot")
    parameters = {**fitted.parameters, "tree": {"a": "b", "b": "a"}}
    with pytest.raises(CacheError, match=r"damaged: tree: a under b under a is a circle"):
        model_from(Fitted("zeroshot", parameters, fitted.arrays))
