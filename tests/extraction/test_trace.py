"""`vggfeat trace`: shapes and errors are those of torchvision's models and of torch itself."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torchvision
from command_line import assert_one_line, vggfeat
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import functional as F  # noqa: N812 as in the documentation

from vggfeat.core.vgg_layers import VARIANTS, find_layer
from vggfeat.extraction.trace import Stage, trace
from vggfeat.network.weight_check import Checkpoint, check_fit

if TYPE_CHECKING:
    from pathlib import Path

Shapes = dict[str, tuple[int, ...]]


def real_shapes(model: str, sides: tuple[int, int], batch: int) -> tuple[Shapes, nn.Module]:
    """Output shape of every module of torchvision's model, without computing a value."""
    with torch.device("meta"):
        network = torchvision.models.get_model(model, weights=None).eval()
        images = torch.zeros(batch, 3, *sides)
    shapes: Shapes = {"tensor": tuple(images.shape)}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            shapes[name] = tuple(output.shape)

        return hook

    for name, module in network.named_modules():
        module.register_forward_hook(note(name))
    network(images)
    return shapes, network


def words_of(error: BaseException) -> str:
    return str(error).removeprefix("addmm: ")  # which newer versions put in front


def by_name(stages: tuple[Stage, ...]) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages}


@pytest.mark.parametrize("model", VARIANTS)
@pytest.mark.parametrize(("size", "sides"), [(None, (224, 224)), ("160x330", (160, 330))])
def test_shapes_are_torchvisions(model: str, size: str | None, sides: tuple[int, int]) -> None:
    """Every stage has the shape and parameters of the module it names, for any input."""
    shapes, network = real_shapes(model, sides, 3)
    found = trace(size=size, model=model, batch=3)
    assert found.fits
    stages = by_name(found.stages)
    for name in ("tensor", "avgpool"):
        assert stages[name].shape == shapes[name]
    layers = [stage for stage in found.stages if "." in stage.by]
    assert len(layers) == sum(
        isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.Linear) for module in network.modules()
    )
    for stage in layers:
        assert stage.shape == shapes[stage.by]
        values = int(np.prod(stage.shape))
        assert (stage.batch_bytes, stage.half_bytes) == (4 * values, 2 * values)
        assert 3 * stage.image_bytes == stage.batch_bytes
    assert stages["flatten"].shape == (3, int(np.prod(shapes["avgpool"][1:])))
    assert found.params == sum(values.numel() for values in network.parameters())
    assert sum(stage.params for stage in found.stages) == found.params


@pytest.mark.parametrize("sides", [(20, 40), (40, 15), (8, 8), (1, 1)])
def test_an_input_too_small(sides: tuple[int, int]) -> None:
    """It goes wrong first where torch says so, in torch's words."""
    model = torchvision.models.vgg11(weights=None).eval()
    modules = dict(model.features.named_children())
    x, failing, said = torch.zeros(1, 3, *sides), "", ""
    for name, module in modules.items():
        try:
            x = module(x)
        except RuntimeError as error:
            failing, said = f"features.{name}", str(error)
            break
    found = trace(size=f"{sides[0]}x{sides[1]}", model="vgg11")
    (problem,) = found.problems
    assert found.stages[-1].by == failing
    assert found.stages[-1].wrong
    assert problem.stage == found.stages[-1].name
    assert said in problem.found
    assert "32 pixels" in problem.remedy


@pytest.mark.parametrize(("side", "batch"), [(160, 1), (256, 2), (32, 1)])
def test_a_map_that_is_not_pooled_to_seven(side: int, batch: int) -> None:
    """The note gives torch's own words for a network without adaptive pooling, and it fits here."""
    length = 512 * (side // 32) ** 2
    with pytest.raises(RuntimeError) as error:
        nn.Linear(25088, 4096)(torch.zeros(batch, length))
    found = trace(size=str(side), batch=batch)
    assert found.fits
    assert words_of(error.value) in found.notes[0]
    assert "avgpool" in found.notes[0]


def test_the_message_of_the_forums() -> None:
    """At 160 pixels it is the one that many meet: 12800 and 25088."""
    message = "mat1 and mat2 shapes cannot be multiplied (1x12800 and 25088x4096)"
    assert message in trace(size="160").notes[0]


def shapes_of(model: str, **more: Any) -> Shapes:
    with torch.device("meta"):
        network = torchvision.models.get_model(model, weights=None, **more)
    return {name: tuple(values.shape) for name, values in network.state_dict().items()}


@pytest.mark.parametrize("model", VARIANTS)
def test_the_variants_own_tensors_fit(model: str) -> None:
    """Names and shapes of torchvision's own state_dict fit, with no note."""
    fit = check_fit(Checkpoint("own", shapes_of(model)), model)
    assert (fit.problems, fit.notes) == ((), ())


def test_ten_classes_are_fine() -> None:
    """A fine-tuned last layer fits, and is said."""
    fit = check_fit(Checkpoint("ten", shapes_of("vgg16", num_classes=10)), "vgg16")
    assert not fit.problems
    assert "10 classes" in fit.notes[0]


@pytest.mark.parametrize(("asked", "file"), [("vgg19", "vgg16"), ("vgg16", "vgg16_bn")])
def test_another_variant_is_recognised(asked: str, file: str) -> None:
    """A file of another variant is wrong from the first layer that differs; its option is named."""
    own, other = shapes_of(asked), shapes_of(file)
    fit = check_fit(Checkpoint("file", other), asked)
    (problem,) = fit.problems
    assert f"those of {file}" in problem.found
    assert problem.remedy == f"--model {file}"
    first = next(name for name in own if other.get(name) != own[name])
    index = find_layer(asked, problem.stage).index
    assert first.startswith(f"features.{index}.")


@pytest.mark.parametrize(
    ("side", "advice"), [(1, "pool5:avg"), (5, "--size 160"), (3, "--size 96")]
)
def test_a_classifier_for_another_map(side: int, advice: str) -> None:
    """A classifier of another length gets torch's message, its map, and how to have that vector."""
    length = 512 * side * side
    shapes = {**shapes_of("vgg11"), "classifier.0.weight": (4096, length)}
    (problem,) = check_fit(Checkpoint("file", shapes), "vgg11").problems
    with pytest.raises(RuntimeError) as error:
        nn.Linear(length, 4096)(torch.zeros(1, 25088))
    assert problem.stage == "fc6"
    assert words_of(error.value) in problem.found
    assert f"{length} is 512 x {side} x {side}" in problem.found
    assert advice in problem.remedy


@pytest.mark.parametrize(
    ("change", "stage", "found"),
    [
        ({"classifier.0.weight": (4096, 1000)}, "fc6", "it takes 1000 numbers"),
        ({"classifier.3.weight": (512, 4096)}, "fc7", "classifier.3.weight is (512, 4096)"),
        ({"classifier.3.bias": None}, "fc7", "classifier.3.bias is missing"),
        ({"features.6.weight": None}, "conv3_1", "features.6.weight is missing"),
        ({"features.0.weight": (32, 3, 3, 3)}, "conv1_1", "is (32, 3, 3, 3), expected (64, 3, 3"),
        ({"classifier": None}, "fc6", "convolutions only"),
        ({"backbone.": ""}, "conv1_1", "begin with 'backbone.'"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], stage: str, found: str) -> None:
    """Missing tensors and other shapes are named at the stage they belong to, with a remedy."""
    shapes = shapes_of("vgg11")
    for name, shape in change.items():
        if shape == "":
            shapes = {f"{name}{old}": kept for old, kept in shapes.items()}
        elif shape is None:
            shapes = {old: kept for old, kept in shapes.items() if not old.startswith(name)}
        else:
            shapes[name] = shape
    (problem,) = check_fit(Checkpoint("file", shapes), "vgg11").problems
    assert problem.stage == stage
    assert found in problem.found
    assert problem.remedy


def test_unexpected_tensors_are_passed_over() -> None:
    """Tensors that the network has no place for do no harm and are named."""
    shapes = {**shapes_of("vgg11"), "head.weight": (2, 2)}
    fit = check_fit(Checkpoint("file", shapes), "vgg11")
    assert not fit.problems
    assert "head.weight" in fit.notes[0]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo lying on its side: stored 60 x 90 (H x W), shown 90 x 60."""
    path = tmp_path_factory.mktemp("trace") / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    return path


@pytest.mark.parametrize("crop", ["center", "none", "pad", "squash"])
def test_the_way_of_a_photo(photo: Path, crop: Any) -> None:
    """File, upright pixels, resized and cut are as torchvision's transforms have them."""
    stages = by_name(trace(str(photo), size="64", crop=crop, model="vgg11").stages)
    upright = Image.open(photo).rotate(-90, expand=True)
    resized = F.resize(upright, [73 if crop == "center" else 64])
    assert stages["file"].shape == (60, 90)
    assert stages["file"].by == "JPEG RGB"
    assert stages["file"].image_bytes == photo.stat().st_size
    assert stages["decoded"].shape == (upright.height, upright.width, 3)
    whole = (resized.height, resized.width) if crop in ("center", "none") else (64, 64)
    assert stages["resized"].shape == (*whole, 3)
    assert ("cropped" in stages) == (crop == "center")
    assert stages["tensor"].shape == (1, 3, *(whole if crop == "none" else (64, 64)))


def test_a_photo_that_is_none(photo: Path) -> None:
    """It goes wrong at decoding, with the reason that a run would give; exit 3."""
    broken = photo.with_name("broken.jpg")
    broken.write_bytes(photo.read_bytes()[:900])
    page = photo.with_name("page.jpg")
    page.write_text("<html>")
    for path, reason in ((broken, "truncated"), (page, "not an image Pillow can read")):
        done = vggfeat("trace", path, cwd=photo.parent)
        assert done.returncode == 3, done.stderr
        assert re.search(rf"WRONG +decoded: .*{reason}", done.stdout), done.stdout
    assert_one_line(vggfeat("trace", "gone.jpg", cwd=photo.parent), 3, "no such file")


def test_the_command(photo: Path) -> None:
    """Exit 0 when all fits and 3 when weights do not; the table marks the stage; JSON has all."""
    network = torchvision.models.vgg11(weights=None, num_classes=10)
    state = network.state_dict()
    save_file(state, photo.with_name("ten.safetensors"))
    words: list[str | Path] = ["trace", photo, "--model", "vgg11", "--batch", "4"]
    done = vggfeat(*words, "--weights", "ten.safetensors", cwd=photo.parent)
    assert done.returncode == 0, done.stderr
    assert re.search(r"fc8 +classifier\.6 +4 x 10 ", done.stdout)
    assert "weights ten.safetensors fit" in done.stdout
    state["classifier.0.weight"] = torch.zeros(4096, 512)
    torch.save(state, photo.with_name("one.pth"))
    done = vggfeat(*words, "--weights", "one.pth", cwd=photo.parent)
    assert done.returncode == 3, done.stderr
    assert re.search(r"fc6 .*<- WRONG", done.stdout)
    assert done.stdout.count("<- WRONG") == 1
    assert re.search(r"change .*pool5:avg", " ".join(done.stdout.split()))
    shown = json.loads(vggfeat(*words, "--weights", "one.pth", "--json", cwd=photo.parent).stdout)
    assert shown["problems"][0]["stage"] == "fc6"
    assert [stage["name"] for stage in shown["stages"] if stage["wrong"]] == ["fc6"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--size", "big"], 2, "size is 'big'; expected pixels"),
        (["photo.jpg", "--size", "3x4"], 2, "with a photo expected one number"),
        (["--size", "0"], 2, "size is '0'; expected pixels"),
        (["--batch", "0"], 2, "batch is 0; expected 1"),
        (["--crop", "pad"], 2, "crop pad is done to a photo"),
        (["photo.jpg", "--crop", "middle"], 2, "unknown crop 'middle'; expected one of center"),
        (["--model", "vgg12"], 2, "unknown model 'vgg12'"),
        (["--weights", "none.pth"], 3, "'none.pth' not found"),
        (["--weights", "nothing"], 2, "unknown weights 'nothing'"),
    ],
)
def test_usage(photo: Path, words: list[str], code: int, said: str) -> None:
    """What makes no sense is one line that says what was expected."""
    assert_one_line(vggfeat("trace", *words, cwd=photo.parent), code, said)


def test_without_weights_no_torch(photo: Path) -> None:
    """A table alone does not load torch."""
    done = vggfeat("trace", photo, cwd=photo.parent, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0
    assert "vggfeat.extraction.trace" in done.stderr
    assert "| torch" not in done.stderr
