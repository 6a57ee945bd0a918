"""The layer table against torchvision's own models, built without memory on the meta device."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
import torchvision
from places import DOCS
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from vggfeat.core.vgg_layers import CLASSES, GRID, VARIANTS, Layer, find_layer, layer_table
from vggfeat.errors import UsageError

VGG19_CONVS = {
    "conv1_1": 0,
    "conv1_2": 2,
    "conv2_1": 5,
    "conv2_2": 7,
    "conv3_1": 10,
    "conv3_2": 12,
    "conv3_3": 14,
    "conv3_4": 16,
    "conv4_1": 19,
    "conv4_2": 21,
    "conv4_3": 23,
    "conv4_4": 25,
    "conv5_1": 28,
    "conv5_2": 30,
    "conv5_3": 32,
    "conv5_4": 34,
}


@functools.cache
def network(model: str) -> Any:
    with torch.device("meta"):
        return torchvision.models.get_model(model, weights=None)


def module(model: str, container: str, index: int) -> Any:
    return getattr(network(model), container)[index]


def torchvision_layers(model: str) -> list[Layer]:
    """Those of our layers that torchvision computes: all but prob."""
    return [layer for layer in layer_table(model) if layer.kind != "prob"]


def named(model: str, name: str) -> Layer:
    return next(layer for layer in layer_table(model) if layer.name == name)


def test_vgg19_has_the_documented_indices() -> None:
    """VGG19's convolutions are where torchvision numbers them, each ReLU one behind."""
    table = layer_table("vgg19")
    convs = {layer.name: layer.index for layer in table if layer.kind == "conv"}
    assert convs == VGG19_CONVS
    assert all(layer.relu_index == layer.index + 1 for layer in table if layer.kind == "conv")
    assert {layer.name: layer.index for layer in table if layer.kind == "pool"} == {
        "pool1": 4,
        "pool2": 9,
        "pool3": 18,
        "pool4": 27,
        "pool5": 36,
    }
    assert {layer.name: layer.index for layer in table if layer.kind == "fc"} == {
        "fc6": 0,
        "fc7": 3,
        "fc8": 6,
    }


@pytest.mark.parametrize(
    ("model", "name", "index"), [("vgg16", "conv5_3", 28), ("vgg19", "conv5_1", 28)]
)
def test_index_28_is_conv5_3_in_vgg16_alone(model: str, name: str, index: int) -> None:
    """The index that tutorials copy from VGG16 to VGG19 names another layer there."""
    assert named(model, name).index == index


@pytest.mark.parametrize("model", VARIANTS)
def test_every_index_holds_the_module_it_should(model: str) -> None:
    """Index, norm and ReLU indices point at modules of the right class and widths."""
    for layer in torchvision_layers(model):
        own = module(model, layer.container, layer.index)
        if layer.kind == "conv":
            assert isinstance(own, nn.Conv2d)
            assert (own.in_channels, own.out_channels) == (layer.in_channels, layer.channels)
        elif layer.kind == "fc":
            assert isinstance(own, nn.Linear)
            assert (own.in_features, own.out_features) == (layer.in_channels, layer.channels)
        else:
            assert isinstance(own, nn.MaxPool2d)
        if layer.norm_index is not None:
            norm = module(model, layer.container, layer.norm_index)
            assert isinstance(norm, nn.BatchNorm2d)
        if layer.relu_index is not None:
            assert isinstance(module(model, layer.container, layer.relu_index), nn.ReLU)


@pytest.mark.parametrize("model", VARIANTS)
def test_no_module_is_missing(model: str) -> None:
    """The table accounts for every module but dropout, each once and in torchvision's order."""
    ours = [
        f"{layer.container}.{index}"
        for layer in torchvision_layers(model)
        for index in (layer.index, layer.norm_index, layer.relu_index)
        if index is not None
    ]
    theirs = [
        f"{container}.{index}"
        for container in ("features", "classifier")
        for index, own in enumerate(getattr(network(model), container))
        if not isinstance(own, nn.Dropout)
    ]
    assert ours == theirs


@pytest.mark.parametrize("model", VARIANTS)
def test_names_count_up_within_blocks(model: str) -> None:
    """Blocks of conv1_1, conv1_2, ..., pool1 are followed by fc6, fc7, fc8 and prob."""
    names = [layer.name for layer in layer_table(model)]
    blocks: list[str] = []
    block, number = 1, 0
    for own in network(model).features:
        if isinstance(own, nn.Conv2d):
            number += 1
            blocks.append(f"conv{block}_{number}")
        elif isinstance(own, nn.MaxPool2d):
            blocks.append(f"pool{block}")
            block, number = block + 1, 0
    assert names == [*blocks, "fc6", "fc7", "fc8", "prob"]


@pytest.mark.parametrize("model", VARIANTS)
def test_parameters_are_torchvisions_layer_by_layer(model: str) -> None:
    """Each layer's count is that of its modules, and all together the published total."""
    for layer in torchvision_layers(model):
        indices = {layer.index, layer.norm_index} - {None}
        modules = [module(model, layer.container, index) for index in indices if index is not None]
        assert layer.params == sum(p.numel() for own in modules for p in own.parameters())
    total = sum(layer.params for layer in layer_table(model))
    assert total == sum(p.numel() for p in network(model).parameters())
    assert total == published(model)["num_params"]


def published(model: str) -> Any:
    """What torchvision documents of the ImageNet weights."""
    return torchvision.models.get_model_weights(model)["IMAGENET1K_V1"].meta


@pytest.mark.parametrize("size", [(224, 224), (200, 333), (32, 47)], ids=str)
@pytest.mark.parametrize("model", VARIANTS)
def test_shapes_and_strides_are_torchvisions(model: str, size: tuple[int, int]) -> None:
    """The output of each node, behind and before its ReLU, has the channels and grid we say."""
    layers = torchvision_layers(model)
    nodes = {layer.node(pre=pre) for layer in layers for pre in (False, True)}
    extractor = create_feature_extractor(network(model).eval(), sorted(nodes))
    outputs = extractor(torch.empty((1, 3, *size), device="meta"))
    for layer in layers:
        grid = layer.grid(*size)
        expected = (1, layer.channels, *grid) if layer.is_map else (1, layer.channels)
        assert outputs[layer.node()].shape == expected
        assert outputs[layer.node(pre=True)].shape == expected


@pytest.mark.parametrize("model", VARIANTS)
def test_node_is_what_follows_the_weights(model: str) -> None:
    """A layer's node is its ReLU; before it comes the normalisation, or else the convolution."""
    norm = nn.BatchNorm2d if model.endswith("_bn") else nn.Conv2d
    for layer in torchvision_layers(model):
        after = network(model).get_submodule(layer.node())
        before = network(model).get_submodule(layer.node(pre=True))
        if layer.kind == "conv":
            assert isinstance(after, nn.ReLU)
            assert isinstance(before, norm)
        elif layer.kind == "pool":
            assert after is before
        else:
            assert isinstance(before, nn.Linear)
            assert isinstance(after, nn.Linear if layer.name == "fc8" else nn.ReLU)


def test_prob_has_no_node() -> None:
    """Torchvision's model computes no softmax."""
    with pytest.raises(ValueError, match="prob is the softmax of fc8"):
        named("vgg19", "prob").node()


def thin(features: Any) -> nn.Sequential:
    """One channel and equal weights throughout, and pooling that lets every input through."""
    modules: list[nn.Module] = []
    for own in features:
        if isinstance(own, nn.MaxPool2d):
            modules.append(nn.AvgPool2d(own.kernel_size, own.stride))
        elif isinstance(own, nn.Conv2d):
            conv = nn.Conv2d(1, 1, (3, 3), padding=1, bias=False).double()
            nn.init.constant_(conv.weight, 1 / 9)
            modules.append(conv)
        else:
            modules.append(nn.Identity())
    return nn.Sequential(*modules)


@pytest.mark.parametrize("model", VARIANTS)
def test_receptive_field_is_the_extent_of_the_gradient(model: str) -> None:
    """The middle unit of each layer depends on as many rows and columns of pixels as we say."""
    image = torch.rand((1, 1, 576, 576), dtype=torch.float64, requires_grad=True)
    x: torch.Tensor = image
    fields = {}
    for index, own in enumerate(thin(network(model).features)):
        x = own(x)
        middle = x[0, 0, x.shape[2] // 2, x.shape[3] // 2]
        (gradient,) = torch.autograd.grad(middle, image, retain_graph=True)
        touched = gradient[0, 0] != 0
        fields[index] = (int(touched.any(1).sum()), int(touched.any(0).sum()))
    for layer in layer_table(model):
        if layer.is_map:
            assert fields[layer.index] == (layer.receptive_field,) * 2, layer.name


@pytest.mark.parametrize(
    ("model", "name", "field"),
    [
        ("vgg16", "conv5_3", 196),
        ("vgg16", "pool5", 212),
        ("vgg19", "conv3_4", 48),
        ("vgg19", "conv5_4", 252),
        ("vgg16", "fc6", 0),
    ],
)
def test_receptive_fields_are_the_published_ones(model: str, name: str, field: int) -> None:
    """Well-known receptive fields come out of the table."""
    assert named(model, name).receptive_field == field


@pytest.mark.parametrize("model", VARIANTS)
def test_cost_is_the_published_one(model: str) -> None:
    """Multiply-adds at 224 x 224 are what torchvision documents, in thousand millions."""
    total = sum(layer.multiply_adds(224, 224) for layer in layer_table(model))
    assert round(total / 1e9, 3) == published(model)["_ops"]


@pytest.mark.parametrize(("model", "billions"), [("vgg16", 15.5), ("vgg19", 19.6)])
def test_cost_rounds_to_the_literatures(model: str, billions: float) -> None:
    """VGG16 takes 15.5 and VGG19 19.6 thousand million multiply-adds."""
    total = sum(layer.multiply_adds(224, 224) for layer in layer_table(model))
    assert round(total / 1e9, 1) == billions


def test_cost_follows_the_size_of_the_grid() -> None:
    """A convolution costs nine products a pair of channels and position, odd sizes rounded down."""
    assert named("vgg19", "conv2_1").multiply_adds(201, 333) == 9 * 64 * 128 * 100 * 166
    assert named("vgg19", "fc6").multiply_adds(201, 333) == 512 * GRID * GRID * 4096
    assert named("vgg19", "pool3").multiply_adds(201, 333) == 0
    assert named("vgg19", "prob").multiply_adds(201, 333) == 0


@pytest.mark.parametrize("model", VARIANTS)
@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("relu5_1", "conv5_1"),
        ("relu6", "fc6"),
        ("relu7", "fc7"),
        ("logits", "fc8"),
        ("pool4", "pool4"),
        ("prob", "prob"),
    ],
)
def test_aliases_find_their_layer(model: str, alias: str, name: str) -> None:
    """The other usual names of a layer find it, and every own name finds itself."""
    assert find_layer(model, alias).name == name


@pytest.mark.parametrize("model", VARIANTS)
def test_every_layer_is_found_by_its_name(model: str) -> None:
    """Looking a layer of the table up by its name gives that layer."""
    for layer in layer_table(model):
        assert find_layer(model, layer.name) is layer


@pytest.mark.parametrize(
    ("model", "name", "near"),
    [
        ("vgg19", "conv5_5", "conv5_4"),
        ("vgg16", "conv5_4", "conv5_3"),
        ("vgg19", "cnv3_2", "conv3_2"),
        ("vgg19", "fc9", "fc8"),
        ("vgg19", "relu5_5", "conv5_4"),
        ("vgg19", "Conv4-1", "conv4_1"),
    ],
)
def test_unknown_layer_suggests_a_near_one(model: str, name: str, near: str) -> None:
    """A name that is not there is answered by the model, near names, and where to see them all."""
    with pytest.raises(UsageError) as caught:
        find_layer(model, name)
    message = str(caught.value)
    assert message.startswith(f"layer {name!r} is not in {model}")
    assert near in message.split("did you mean ")[1]
    assert f"`vggfeat layers --model {model}` lists them all" in message


@pytest.mark.parametrize("name", ["zzz", "", "features.99"])
def test_unlike_anything_suggests_nothing(name: str) -> None:
    """A name like no other gets no guess, only the way to the list."""
    with pytest.raises(UsageError, match="is not in vgg19; `vggfeat layers"):
        find_layer("vgg19", name)


@pytest.mark.parametrize("model", ["vgg20", "VGG19", "resnet50", ""])
def test_unknown_model_lists_the_known(model: str) -> None:
    """A model that torchvision's VGG family has not is answered by the eight it has."""
    with pytest.raises(UsageError, match=re.escape(f"unknown model {model!r}; expected one of")):
        layer_table(model)
    with pytest.raises(UsageError, match=", ".join(VARIANTS)):
        find_layer(model, "fc7")


def test_near_model_is_suggested() -> None:
    """A slip in the model's name is answered by the name meant."""
    with pytest.raises(UsageError, match="did you mean vgg16_bn"):
        layer_table("vgg16-bn")


def test_every_layer_says_what_it_carries() -> None:
    """Each layer has words for what it responds to, the same within a block."""
    carries = {layer.name: layer.carries for layer in layer_table("vgg19")}
    assert all(carries.values())
    assert carries["conv1_1"] == carries["pool1"] == "edges, colours"
    assert carries["prob"] == "class probabilities"
    assert len(set(carries.values())) == 9


def test_classes_are_imagenets() -> None:
    """The last layers of torchvision's models have the width the table gives without weights."""
    assert network("vgg19").classifier[6].out_features == CLASSES
    assert network("vgg19").avgpool.output_size == (GRID, GRID)


@pytest.mark.parametrize("model", VARIANTS)
def test_torchvisions_modules_are_answered_with_our_names(model: str) -> None:
    """Every module of torchvision's model that has features of ours is named in the error."""
    with torch.device("meta"):
        network = torchvision.models.get_model(model, weights=None)
    before = ""
    for name, module in network.named_modules():
        if "." not in name:
            continue
        with pytest.raises(UsageError) as caught:
            find_layer(model, name)
        said = re.search(r"torchvision's (\S+) is ([^;]+);", str(caught.value))
        assert said is not None, name
        assert said[1] == name
        ours = said[2]
        layer = find_layer(model, ours.removesuffix(".pre"))
        if isinstance(module, nn.Dropout):
            assert ours == before
        elif isinstance(module, nn.Conv2d) and layer.norm_index is not None:
            assert ours == f"{layer.name}.pre"
            assert f"features.{layer.index}" == name
            assert "behind its batch normalisation" in str(caught.value)
        else:
            assert layer.node(pre=ours.endswith(".pre")) == name
        before = ours


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("block5_conv3", "Keras's block5_conv3 is conv5_3;"),
        ("block3_pool", "Keras's block3_pool is pool3;"),
        ("fc1", "Keras's fc1 is fc6;"),
        ("predictions", "Keras's predictions is prob;"),
        ("pre_logits.fc2", "timm's pre_logits.fc2 is fc7.pre;"),
        ("head.fc", "timm's head.fc is fc8;"),
        ("Block5_Conv3", "Keras's block5_conv3 is conv5_3;"),
        ("features[33]", "torchvision's features[33] is conv5_3;"),
        ("33", "torchvision's 33 is conv5_3;"),
    ],
)
def test_other_tools_names_are_answered_with_ours(name: str, said: str) -> None:
    """What Keras and timm call a layer is answered with its name here."""
    with pytest.raises(UsageError, match=re.escape(said)):
        find_layer("vgg19", name)


@pytest.mark.parametrize(
    ("name", "in_vgg11", "in_vgg19"),
    [
        ("last(4)", "conv4_2", "conv4_4"), ("block4", "conv4_2", "conv4_4"),
        ("first(4)", "conv4_1", "conv4_1"), ("Last( 1 )", "conv1_1", "conv1_2"),
        ("RELU5_1", "conv5_1", "conv5_1"), ("FC7", "fc7", "fc7"), ("Logits", "fc8", "fc8"),
    ],
)  # fmt: skip
def test_names_by_meaning(name: str, in_vgg11: str, in_vgg19: str) -> None:
    """Layers by their block, and in any case."""
    assert find_layer("vgg11", name).name == in_vgg11
    assert find_layer("vgg19_bn", name).name == in_vgg19


@pytest.mark.parametrize("name", ["last(6)", "last(0)", "last(12)", "first()", "block", "block6"])
def test_blocks_that_are_not_there(name: str) -> None:
    """There are blocks 1 to 5."""
    with pytest.raises(UsageError, match="is not in vgg16"):
        find_layer("vgg16", name)


def test_a_layer_that_the_variant_lacks_is_not_promised() -> None:
    """Keras's name of a layer that vgg11 does not have gets no translation."""
    with pytest.raises(UsageError) as caught:
        find_layer("vgg11", "block5_conv3")
    assert "Keras's" not in str(caught.value)


def test_the_table_of_names_is_right() -> None:
    """What docs/USING.md says other tools call a layer is what the error says."""
    text = (DOCS / "USING.md").read_text(encoding="utf-8")
    table = text.split("## Names of layers in other tools")[1].split("## ")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| `")]
    assert len(rows) == 9
    for ours, *theirs in rows:
        name = ours.strip(" `")
        find_layer("vgg19", name.removesuffix(".pre"))  # or it raises
        for cell in theirs[:3]:
            if cell.strip():
                with pytest.raises(UsageError, match=re.escape(f"{cell.strip(' `')} is {name};")):
                    find_layer("vgg19", cell.strip(" `"))
        if re.fullmatch(r" `\w+` ", theirs[3]):
            assert find_layer("vgg19", theirs[3].strip(" `")).name == name
