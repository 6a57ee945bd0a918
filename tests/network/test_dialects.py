"""Weight files of the field: every format and every make of names gives torchvision's features."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import re
import zipfile
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from command_line import assert_one_line, vggfeat
from PIL import Image
from torch import nn
from weight_files import read_checkpoint

from vggfeat import Extractor
from vggfeat.core.settings import Settings
from vggfeat.core.vgg_layers import VARIANTS, layer_table, parameter_shapes
from vggfeat.errors import WeightsError
from vggfeat.extraction.trace import trace
from vggfeat.network.checkpoint_reader import open_checkpoint
from vggfeat.network.dialects import DIALECTS, Dialect, TensorSource, registry, translate
from vggfeat.network.weights import find_weights
from vggfeat.storage.checked_file import digest_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    State = dict[str, Tensor]

LAYERS = "conv1_1,conv5_2,fc6,fc7,fc8"


def small_state(model: str, classes: int) -> State:
    """All tensors of a VGG; units of a fully connected layer share one row of weights."""
    state = {}
    for name, shape in parameter_shapes(layer_table(model), classes).items():
        if name.startswith("classifier") and len(shape) > 1:
            state[name] = (torch.randn(1, shape[1]) / shape[1] ** 0.5).expand(shape)
        else:
            wide = len(shape) > 1
            state[name] = torch.randn(shape) * ((2 / np.prod(shape[1:])) ** 0.5 if wide else 0.3)
    return state


class Reference:
    """A narrow-headed VGG11 of torchvision, some images, and its features of them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        with torch.device("meta"):
            network = torchvision.models.vgg11(weights=None, num_classes=7).eval()
        self.state = small_state("vgg11", 7)
        network.load_state_dict(self.state, assign=True)
        self.network = network.requires_grad_(requires_grad=False)
        self.images = torch.randn(2, 3, 64, 64)
        self.features = self.run(self.images)

    @torch.no_grad()
    def run(self, x: Tensor) -> dict[str, Tensor]:
        found = {}
        for index, module in enumerate(self.network.features):
            x = module(x)
            if index in (1, 19):
                found["conv1_1" if index == 1 else "conv5_2"] = x.mean((2, 3))
        x = torch.flatten(self.network.avgpool(x), 1)
        for index, module in enumerate(self.network.classifier):
            x = module(x)
            if index in (1, 4, 6):
                found[f"fc{6 + index // 3}"] = x.clone()
        return found


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def timm(state: State) -> State:
    """As `timm.create_model("vgg11").state_dict()`: its fully connected layers are convolutions."""
    names = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2",
             "classifier.6": "head.fc"}  # fmt: skip
    sides = {"pre_logits.fc1.weight": 7, "pre_logits.fc2.weight": 1}
    found = {}
    for name, value in state.items():
        module, _, part = name.rpartition(".")
        new = f"{names.get(module, module)}.{part}"
        side = sides.get(new)
        found[new] = value if side is None else value.view(len(value), -1, side, side)
    return found


def johnson(state: State) -> State:
    """As in vgg16-00b39a1b.pth: a layer that flattens stands in front of the classifier."""
    moved = {"classifier.0": "classifier.1", "classifier.3": "classifier.4"}
    return {
        f"{moved.get(name.rpartition('.')[0], name.rpartition('.')[0])}.{name.rpartition('.')[2]}":
        value for name, value in state.items()
    }  # fmt: skip


def under(*prefixes: str) -> Callable[[State], Any]:
    return lambda state: {f"{''.join(prefixes)}{name}": value for name, value in state.items()}


def split_data_parallel(state: State) -> State:
    """As the ImageNet example of PyTorch has it: `model.features = DataParallel(…)`."""
    return {re.sub(r"^features\.", "features.module.", name): v for name, v in state.items()}


def trainer(state: State) -> Any:
    """As timm's CheckpointSaver: arguments, optimizer, averaged weights."""
    return {
        "epoch": 3, "arch": "vgg11", "state_dict": timm(state), "metric": np.float64(0.5),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(lr=0.1, output=pathlib.PurePosixPath("out")),
        "state_dict_ema": {name: value * 0 for name, value in state.items() if "features" in name},
    }  # fmt: skip


def lightning(state: State) -> Any:
    """As Lightning's .ckpt of a compiled network beside a loss with weights of its own."""
    named = under("model._orig_mod.")(state)
    return {
        "epoch": 0, "global_step": 9, "pytorch-lightning_version": "2.6", "loops": {"fit": {}},
        "state_dict": collections.OrderedDict({**named, "loss.weight": torch.ones(7)}),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": torch.tensor(1.0)}},
        "hyper_parameters": {"lr": 0.1, "cfg": argparse.Namespace(a=1)},
    }  # fmt: skip


WRITERS: Mapping[str, Callable[[State], Any]] = {
    "torchvision": dict,
    "timm": timm,
    "johnson": johnson,
    "module": under("module."),
    "_orig_mod": under("_orig_mod."),
    "model": under("model."),
    "backbone": under("backbone."),
    "encoder": under("encoder."),
    "nested prefixes": under("model.", "_orig_mod.", "module.", "encoder."),
    "timm in Lightning": lambda state: {"state_dict": under("model.")(timm(state))},
    "DataParallel inside": split_data_parallel,
    "state_dict": lambda state: {"state_dict": state},
    "model entry": lambda state: {"model": state, "optimizer": {"state": {}}},
    "net entry": lambda state: {"net": under("module.")(state), "acc": 91.5, "epoch": 7},
    "model_state_dict": lambda state: {"epoch": 1, "model_state_dict": state, "loss": 0.25},
    "model in state_dict": lambda state: {"state_dict": {"model": state}},
    "only averaged": lambda state: {"epoch": 1, "model_ema": state},
    "timm's trainer": trainer,
    "Lightning's": lightning,
}


def features_of(path: Path, images: Tensor, model: str = "vgg11") -> dict[str, Tensor]:
    settings = Settings.for_weights(
        str(path), layers=LAYERS, model=model, device="cpu", precision="float32"
    )
    return Extractor(settings)(images)


def assert_features(path: Path, reference: Reference) -> None:
    found = features_of(path, reference.images)
    for name, expected in reference.features.items():
        error = float((found[name] - expected).abs().max() / expected.abs().max())
        assert error < 1e-5, (name, error)
    path.unlink()  # they are large


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("suffix", [".pth.tar", ".bin"])
def test_what_people_save_gives_torchvisions_features(
    reference: Reference, tmp_path: Path, writer: str, suffix: str
) -> None:
    """Whatever the names, wrappings and suffix, in torch's new and old format."""
    path = tmp_path / f"w{suffix}"
    old = suffix == ".pth.tar"
    torch.save(WRITERS[writer](reference.state), path, _use_new_zipfile_serialization=not old)
    assert_features(path, reference)


@pytest.mark.parametrize("writer", ["timm", "nested prefixes"])
def test_safetensors_under_any_name(reference: Reference, tmp_path: Path, writer: str) -> None:
    """Content decides on the format, not the suffix."""
    path = tmp_path / "model.ckpt"
    state = {name: value.contiguous() for name, value in WRITERS[writer](reference.state).items()}
    safetensors.torch.save_file(state, path)
    assert_features(path, reference)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_gives_its_tensors(reference: Reference, tmp_path: Path, how: str) -> None:
    """A TorchScript archive is read for its tensors."""
    path = tmp_path / "w.pt"
    network = reference.network
    made: Any = (
        torch.jit.script(network) if how == "script" else torch.jit.trace(network, reference.images)  # type: ignore[no-untyped-call] # torch
    )
    torch.jit.save(made, path)
    assert_features(path, reference)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_code_in_torchscript_is_never_looked_at(reference: Reference, tmp_path: Path) -> None:
    """Code of an archive that is no code at all changes nothing; torch itself cannot load it."""
    torch.jit.save(torch.jit.script(reference.network), tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as whole, zipfile.ZipFile(
        tmp_path / "bad.pt", "w"
    ) as bad:  # fmt: skip
        for member in whole.infolist():
            data = whole.read(member)
            bad.writestr(member.filename, b"not a program" if "/code/" in member.filename else data)
    with pytest.raises(RuntimeError):
        torch.jit.load(tmp_path / "bad.pt")  # type: ignore[no-untyped-call] # torch has no types here
    assert_features(tmp_path / "bad.pt", reference)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_frozen_torchscript_is_refused(tmp_path: Path) -> None:
    """A frozen module has no names left, and the error says so."""
    small = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    torch.jit.save(torch.jit.freeze(torch.jit.script(small)), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"have no names, as torch\.jit\.freeze leaves them"):
        read_checkpoint(str(tmp_path / "w.pt"))


def test_features_alone(reference: Reference, tmp_path: Path) -> None:
    """The state of `vgg.features` is known, in front and inside; what lies behind is refused."""
    alone = reference.network.features.state_dict()
    for number, state in enumerate((alone, under("backbone.")(dict(alone)))):
        path = tmp_path / f"{number}.pth"
        torch.save(state, path)
        settings = Settings.for_weights(
            str(path), layers="conv1_1,conv5_2", model="vgg11", device="cpu", precision="float32"
        )
        found = Extractor(settings)(reference.images)
        for name, value in found.items():
            torch.testing.assert_close(value, reference.features[name], rtol=1e-4, atol=1e-5)
        with pytest.raises(WeightsError, match=r"conv and pool layers work all the same.*conv5_2"):
            features_of(path, reference.images)


def test_several_networks_are_refused(reference: Reference, tmp_path: Path) -> None:
    """Of a student and its teacher nobody can know which is meant."""
    state = reference.state
    torch.save({**under("student.")(state), **under("teacher.")(state)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"several VGG networks, under 'student', 'teacher'"):
        read_checkpoint(str(tmp_path / "w.pth"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_whole_model_is_refused_with_what_to_do(tmp_path: Path, zipped: bool) -> None:
    """A pickled module says how to save its tensors, and never how to load it unsafely."""
    torch.save(nn.Sequential(nn.Linear(2, 3)), tmp_path / "w.pth",
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    done = vggfeat("trace", "--weights", "w.pth", cwd=tmp_path)
    assert_one_line(done, 3, "whole model (torch.nn.modules.container.Sequential)",
                    "torch.save(model.state_dict(), 'weights.pth')")  # fmt: skip
    assert "weights_only" not in done.stderr
    assert "WARNING" not in done.stderr


def test_every_dialect_is_told_apart() -> None:
    """Each dialect reads its own names and no other's."""
    shapes = parameter_shapes(layer_table("vgg16"), 1000)
    with torch.device("meta"):
        state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    made = {
        "torchvision": state,
        "timm": timm(state),
        "torch, converted from Caffe": johnson(state),
        "torchvision's features alone": {
            name.removeprefix("features."): v for name, v in state.items() if "features" in name
        },
        "Keras": keras_state(state, "{0}/{0}/{1}"),
    }
    assert {one.name for one in DIALECTS} == set(made)
    for name, tensors in (*made.items(), ("Keras", numbered(state))):
        reading = translate({key: tuple(value.shape) for key, value in tensors.items()})
        assert reading.dialect == name
        expected = {key: one for key, one in shapes.items() if key in reading.shapes}
        assert dict(reading.shapes) == expected
        alone = name == "torchvision's features alone"
        assert set(expected) == {key for key in shapes if not alone or "features" in key}


@pytest.mark.parametrize("model", VARIANTS)
def test_torchvisions_own_names_stay(model: str) -> None:
    """Every variant's own state dict is read as it is."""
    shapes = parameter_shapes(layer_table(model), 1000)
    assert dict(translate(shapes).shapes) == shapes
    assert translate(shapes).transform == ""


def test_names_that_nobody_knows_are_kept() -> None:
    """Other networks keep their names, and no dialect is claimed."""
    reading = translate({"layer1.0.weight": (64, 64, 3, 3), "module.fc.bias": (10,)})
    assert reading.dialect == ""
    assert set(reading.shapes) == {"layer1.0.weight", "fc.bias"}


# --- Keras


def keras_state(state: Mapping[str, Tensor], names: str) -> dict[str, Any]:
    """The same weights as Keras lays them out: HWIO, BGR, maps flattened position by position.

    Args:
        state: of torchvision's VGG16.
        names: pattern of a data set's path, of layer and `kernel` or `bias`.
    """
    found = {}
    fcs = {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}
    for layer in layer_table("vgg16"):
        if f"{layer.container}.{layer.index}.weight" not in state or layer.kind == "prob":
            continue
        block, _, number = layer.name.removeprefix("conv").partition("_")
        name = fcs.get(layer.name, f"block{block}_conv{number}")
        weight = state[f"{layer.container}.{layer.index}.weight"]
        if layer.kind == "conv":
            weight = weight.flip(1) if layer.name == "conv1_1" else weight
            weight = weight.permute(2, 3, 1, 0)
        elif layer.name == "fc6":
            weight = weight.view(len(weight), 512, 7, 7).permute(2, 3, 1, 0).flatten(0, 2)
        else:
            weight = weight.t()
        found[names.format(name, "kernel")] = weight
        found[names.format(name, "bias")] = state[f"{layer.container}.{layer.index}.bias"]
    return found


def write_h5(path: Path, values: Mapping[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file[name] = value.contiguous().numpy() if torch.is_tensor(value) else value
        file["optimizer_weights/adam/block1_conv1/kernel"] = np.ones((3, 3, 3, 64), "f4")


def numbered(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """As Keras 3 names them in .weights.h5: by class, in order."""
    found, counts = {}, {"conv2d": -1, "dense": -1}
    for name, value in keras_state(state, "{0}/{1}").items():
        kind = "conv2d" if name.startswith("block") else "dense"
        counts[kind] += name.endswith("kernel")
        number = f"_{counts[kind]}" if counts[kind] else ""
        found[f"layers/{kind}{number}/vars/{int(name.endswith('bias'))}"] = value
    return found


@pytest.fixture(scope="module")
def vgg16() -> dict[str, Tensor]:
    """VGG16 of five classes, in half precision to be small."""
    torch.manual_seed(3)
    return {name: value.half() for name, value in small_state("vgg16", 5).items()}


KERAS_NAMES: Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Any]]] = {
    "published": lambda state: keras_state(state, "{0}/{0}_{1}_1:0"),
    "whole model": lambda state: keras_state(state, "model_weights/{0}/{0}/{1}:0"),
    "inside another": lambda state: keras_state(state, "model_weights/vgg16/{0}/{1}:0"),
    "numbered": numbered,
}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) >= set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("names", KERAS_NAMES)
def test_keras_files_are_torchvisions_tensors(
    vgg16: dict[str, Tensor], tmp_path: Path, names: str
) -> None:
    """Kernels, order of colours and of the flattened map come out as torchvision has them."""
    path = tmp_path / "w.h5"
    whole = names == "published"  # the others without fully connected layers, which are large
    wanted = {name: value for name, value in vgg16.items() if whole or "features" in name}
    write_h5(path, KERAS_NAMES[names](wanted))
    assert_same(read_checkpoint(str(path)), wanted)
    settings = Settings.for_weights(str(path), layers="fc8", model="vgg16")
    assert settings.transform == "caffe"
    assert find_weights(str(path), "vgg16").sha256 == digest_file(str(path)).sha256
    path.unlink()  # it is large


def test_a_keras_archive(vgg16: dict[str, Tensor], tmp_path: Path) -> None:
    """A .keras file is an archive with such weights in it, stored as they are."""
    convolutions = {name: value for name, value in vgg16.items() if "features" in name}
    write_h5(tmp_path / "inner.h5", numbered(convolutions))
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = tmp_path / "w.keras"
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("metadata.json", json.dumps({"keras_version": "3"}))
            archive.writestr("config.json", "{}")
            archive.write(tmp_path / "inner.h5", "model.weights.h5")
        if compression == zipfile.ZIP_STORED:
            assert_same(read_checkpoint(str(path)), convolutions)
        else:
            with pytest.raises(WeightsError, match=r"model\.weights\.h5 is compressed"):
                read_checkpoint(str(path))


def test_keras_preprocessing(vgg16: dict[str, Tensor], tmp_path: Path) -> None:
    """A picture becomes what `preprocess_input` makes of it, in RGB, and the cache records it."""
    convolutions = {n: v for n, v in keras_state(vgg16, "{0}/{0}/{1}").items() if "block" in n}
    write_h5(tmp_path / "notop.h5", convolutions)
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    words = ["extract", "images", "--weights", "notop.h5", "--model", "vgg16", "--size", "32",
             "--crop", "squash", "--device", "cpu", "--precision", "float32", "--dtype", "float32",
             "--out", "f.h5", "--layers"]  # fmt: skip
    done = vggfeat(*words, "conv1_1.pre:map", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    caffe = pixels[..., ::-1].astype(np.float32) - np.array(
        [103.939, 116.779, 123.68], np.float32
    )  # BGR
    kernel = vgg16["features.0.weight"].float().flip(1)  # as it lies in the file, BGR
    x = torch.from_numpy(caffe.copy()).permute(2, 0, 1)[None]
    expected = nn.functional.conv2d(x, kernel, vgg16["features.0.bias"].float(), padding=1)[0]
    with h5py.File(tmp_path / "f.h5") as file:
        found = torch.from_numpy(file["features/conv1_1.pre:map"][0])
        recorded = json.loads(file.attrs["preprocess"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)
    assert recorded["std"] == [1 / 255] * 3
    assert recorded["mean"] == [123.68 / 255, 116.779 / 255, 103.939 / 255]
    done = vggfeat(*words, "fc7", "--fresh", cwd=tmp_path)
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]  # in front of it stands which transform was taken over
    assert "do not fit vgg16" in last
    assert "--layers conv5_3; for fc6 and deeper use --weights imagenet" in last


def test_packed_data_sets_are_refused(tmp_path: Path) -> None:
    """A data set in compressed chunks is named."""
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("block1_conv1/kernel", data=np.ones((3, 3, 3, 64), "f4"),
                            chunks=(3, 3, 3, 8), compression="gzip")  # fmt: skip
    with pytest.raises(WeightsError, match=r"block1_conv1/kernel is float32.* in chunks"):
        read_checkpoint(str(tmp_path / "w.h5"))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_an_hdf5_file_cut_short_is_an_error(
    vgg16: dict[str, Tensor], tmp_path: Path, share: float
) -> None:
    """One that ends early is damaged."""
    write_h5(tmp_path / "w.h5", {"block1_conv1/kernel": vgg16["features.2.weight"]})
    data = (tmp_path / "w.h5").read_bytes()
    (tmp_path / "w.h5").write_bytes(data[: int(share * len(data))])
    with pytest.raises(WeightsError, match=r"damaged or cut short|were refused"):
        read_checkpoint(str(tmp_path / "w.h5"))


def test_trace_says_whose_names_they_are(reference: Reference, tmp_path: Path) -> None:
    """Trace fits a file of timm's, and says how it is read."""
    torch.save(under("model.")(timm(reference.state)), tmp_path / "w.pth")
    found = trace(weights=str(tmp_path / "w.pth"), model="vgg11")
    assert found.fits
    assert any("'model.'" in note for note in found.notes)
    assert any("timm's own for inputs of 224" in note for note in found.notes)
    with open_checkpoint(str(tmp_path / "w.pth")) as file:
        assert file.reading.dialect == "timm"


def test_trace_names_the_variants_own_layer(reference: Reference) -> None:
    """For a file of convolutions it names a layer that the variant has."""
    from vggfeat.network.weight_check import Checkpoint, check_fit

    shapes = {n: tuple(v.shape) for n, v in reference.state.items() if "features" in n}
    (problem,) = check_fit(Checkpoint("file", shapes), "vgg11").problems
    assert "--layers conv5_2" in problem.remedy
    assert "conv5_3" not in problem.remedy


def test_a_dialect_is_a_file_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dialect registered by one line is read: names and layout become torchvision's."""

    def from_toy(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorSource] | None:
        if "toy_features_0_weight" not in shapes:
            return None
        return {
            name.removeprefix("toy_").replace("_", "."): TensorSource(
                name, shape[::-1], lambda values: values.permute(*range(values.dim())[::-1])
            )
            for name, shape in shapes.items()
        }

    convolutions = [layer for layer in layer_table("vgg11") if layer.kind == "conv"]
    state = {
        name: torch.randn(shape) for name, shape in parameter_shapes(convolutions[:2], 0).items()
    }
    toy = {
        f"toy_{name.replace('.', '_')}": value.permute(*range(value.dim())[::-1]).contiguous()
        for name, value in state.items()
    }
    path = str(tmp_path / "toy.safetensors")
    safetensors.torch.save_file(toy, path)
    assert set(read_checkpoint(path)) == set(toy)

    monkeypatch.setattr(registry, "DIALECTS", (*DIALECTS, Dialect("toy", from_toy)))
    with open_checkpoint(path) as file:
        assert file.reading.dialect == "toy"
    read = read_checkpoint(path)
    assert set(read) == set(state)
    assert all(torch.equal(read[name], value) for name, value in state.items())
