"""The layer grammar: what it reads, how it writes it back, and what it says to what it refuses."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggfeat.core.layer_spec import (
    GEM_P,
    GEM_SMALLEST_P,
    NORMS,
    POOLS,
    RMAC_LEVELS,
    SPP_LEVELS,
    LayerSpec,
    Pool,
    parse_specs,
    split_specs,
)
from vggfeat.core.vgg_layers import VARIANTS, layer_table
from vggfeat.errors import UsageError


def canonical(
    text: str, model: str = "vgg19", *, pool: str = "avg", norm: str = "none"
) -> list[str]:
    return [str(spec) for spec in parse_specs(text, model, pool=pool, norm=norm)]


def refusal(text: str, model: str = "vgg19", *, pool: str = "avg", norm: str = "none") -> str:
    with pytest.raises(UsageError) as caught:
        parse_specs(text, model, pool=pool, norm=norm)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("conv5_3", "conv5_3"),
        ("relu5_3", "conv5_3"),
        ("relu5_3.pre", "conv5_3.pre"),
        ("relu7:l2", "fc7:l2"),
        ("logits", "fc8"),
        ("prob", "prob"),
        ("pool5:max", "pool5:max"),
        ("fc6.pre", "fc6.pre"),
        ("conv5_3:avg", "conv5_3"),
        ("conv5_3:none", "conv5_3"),
        ("conv5_3:avg:none", "conv5_3"),
        ("conv5_3:avg:l2", "conv5_3:l2"),
        ("conv5_3.pre:map:ssr", "conv5_3.pre:map:ssr"),
        ("conv5_3:std:ssr", "conv5_3:std:ssr"),
        ("conv5_3:gem", "conv5_3:gem"),
        ("conv5_3:gem(3)", "conv5_3:gem"),
        ("conv5_3:gem(p=3.0)", "conv5_3:gem"),
        ("conv5_3:gem( p=4 )", "conv5_3:gem(p=4)"),
        ("conv5_3:gem(2.50)", "conv5_3:gem(p=2.5)"),
        ("conv5_3:gem(p=3.0000001)", "conv5_3:gem(p=3.0000001)"),
        ("conv5_3:rmac(3)", "conv5_3:rmac"),
        ("conv5_3:rmac( levels=4 ):l2", "conv5_3:rmac(levels=4):l2"),
        ("conv5_3:spp(1,2,3,6)", "conv5_3:spp"),
        ("conv5_3:spp( 1, 2 , 4)", "conv5_3:spp(1,2,4)"),
        ("conv5_3:spp(4,1)", "conv5_3:spp(4,1)"),
        (" conv5_3 : max : l2 ", "conv5_3:max:l2"),
    ],
)
def test_canonical_form(text: str, written: str) -> None:
    """Aliases are resolved, defaults left out, numbers and blanks tidied."""
    assert canonical(text) == [written]


def test_exponents_that_differ_have_names_that_differ() -> None:
    """Two exponents alike in six digits are two specs, which a name in %g would merge."""
    assert len(canonical("conv5_3:gem(p=3.1234567),conv5_3:gem(p=3.1234568)")) == 2


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("conv5_3,fc7", ["conv5_3", "fc7"]),
        ("conv5_3:spp(1,2,4),fc7", ["conv5_3:spp(1,2,4)", "fc7"]),
        (
            "fc6,conv5_3:spp(1,2):l2,conv4_1:gem(p=4)",
            ["fc6", "conv5_3:spp(1,2):l2", "conv4_1:gem(p=4)"],
        ),
        (" fc6 ,, fc7, ", ["fc6", "fc7"]),
        ("", []),
        (" , ", []),
    ],
)
def test_commas_in_brackets_separate_nothing(text: str, parts: list[str]) -> None:
    """Specs end at commas outside brackets; blanks and empty parts are dropped."""
    assert split_specs(text) == parts


def test_order_is_kept_and_duplicates_are_not() -> None:
    """Specs come in the order asked for, each once, whatever words it was asked for in."""
    text = "fc7,conv5_3,relu7,conv1_1:max,conv5_3:avg:none,conv5_3:max,fc7:l2"
    assert canonical(text) == ["fc7", "conv5_3", "conv1_1:max", "conv5_3:max", "fc7:l2"]


def test_defaults_fill_in_only_what_is_not_said() -> None:
    """The default pool is for maps without one, the default norm for specs without one."""
    text = "conv5_3,conv5_3:max,conv5_3:none,conv5_3:avg:ssr,fc7,fc7:none"
    assert canonical(text, pool="gem(p=4)", norm="l2") == [
        "conv5_3:gem(p=4):l2",
        "conv5_3:max:l2",
        "conv5_3:gem(p=4)",
        "conv5_3:ssr",
        "fc7:l2",
        "fc7",
    ]


def test_parsed_values_are_those_written() -> None:
    """The spec carries layer, side of the ReLU, pool with parameters, and norm."""
    first, second, third, fourth = parse_specs(
        "conv4_4.pre:gem(p=4):l2,conv5_4:rmac,conv5_4:spp(1,5),fc7:ssr", "vgg19_bn"
    )
    table = {layer.name: layer for layer in layer_table("vgg19_bn")}
    assert first == LayerSpec(table["conv4_4"], pre=True, pool=Pool("gem", p=4.0), norm="l2")
    assert second == LayerSpec(table["conv5_4"], pool=Pool("rmac", levels=(RMAC_LEVELS,)))
    assert third == LayerSpec(table["conv5_4"], pool=Pool("spp", levels=(1, 5)))
    assert fourth == LayerSpec(table["fc7"], norm="ssr")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool5.pre", "'pool5.pre': pool5 has no ReLU, so nothing is in front of it; write pool5"),
        ("fc8.pre", "layer spec 'fc8.pre': fc8 has no ReLU, so nothing is in front of it"),
        ("logits.pre", "write fc8"),
        ("prob.pre", "prob has no ReLU"),
        ("fc7:avg", "layer spec 'fc7:avg': fc7 is a vector and takes no pool; write fc7"),
        ("relu6:map:l2", "fc6 is a vector and takes no pool"),
        ("prob:max", "prob is a vector and takes no pool"),
        ("conv5_3:l2:max", "is one too many or out of place; expected NAME[.pre][:POOL][:NORM]"),
        ("conv5_3:max:gem", "'gem' is one too many or out of place"),
        ("conv5_3:max:l2:l2", "'l2' is one too many or out of place"),
        ("conv5_3:mean", "'conv5_3:mean': unknown pool 'mean'; expected one of avg, max, gem"),
        ("conv5_3:mean", "; norms are none, l2, ssr"),
        ("conv5_3:", "unknown pool ''"),
        ("conv5_3:max(2)", "max takes nothing in brackets; write max"),
        ("conv5_3:avg()", "avg takes nothing in brackets; write avg"),
        ("conv5_3:gem()", "gem() has no exponent of 0.1 or more; expected for example gem(p=4)"),
        ("conv5_3:gem(0)", "gem(0) has no exponent"),
        ("conv5_3:gem(p=0.01)", "gem(p=0.01) has no exponent"),
        ("conv5_3:gem(p=-3)", "gem(p=-3) has no exponent"),
        ("conv5_3:gem(inf)", "gem(inf) has no exponent"),
        ("conv5_3:gem(nan)", "gem(nan) has no exponent"),
        ("conv5_3:gem(p=three)", "gem(p=three) has no exponent"),
        ("conv5_3:rmac()", "() must be whole numbers from 1 to 14, as in rmac(levels=3)"),
        ("conv5_3:rmac(0)", "(0) must be whole numbers from 1 to 14"),
        ("conv5_3:rmac(levels=levels=3)", "must be whole numbers"),
        ("conv5_3:rmac(1,2)", "rmac takes one number, as in rmac(levels=3)"),
        ("conv5_3:spp()", "() must be whole numbers from 1 to 14, as in spp(1,2,4)"),
        ("conv5_3:spp(1,15)", "(1,15) must be whole numbers from 1 to 14"),
        ("conv5_3:spp(1,,2)", "must be whole numbers"),
        ("conv5_3:spp(1.5)", "must be whole numbers"),
        ("conv5_3:spp(1,2", "unknown pool 'spp(1'"),
        ("conv5_4.post", "layer 'conv5_4.post' is not in vgg19 (did you mean conv5_4"),
        ("conv9_9", "`vggfeat layers --model vgg19` lists them all"),
        ("", "no layers requested; expected for example `--layers conv5_3,fc7`, or a preset"),
        (" , ", "no layers requested"),
    ],
)  # fmt: skip
def test_refusals_say_what_and_what_to_do(text: str, message: str) -> None:
    """What the grammar refuses is quoted, with what was expected and what to write."""
    assert message in refusal(text)


@pytest.mark.parametrize("model", VARIANTS)
def test_pre_exists_wherever_a_relu_does(model: str) -> None:
    """`.pre` is taken by every convolution and by fc6 and fc7, and by nothing else."""
    taken = []
    for layer in layer_table(model):
        try:
            parse_specs(f"{layer.name}.pre", model)
        except UsageError:
            continue
        taken.append(layer.name)
    convs = [layer.name for layer in layer_table(model) if layer.kind == "conv"]
    assert taken == [*convs, "fc6", "fc7"]


def test_all_errors_come_at_once() -> None:
    """One message names every wrong spec and default, in order, and no right one."""
    message = refusal("conv5_5,fc6,fc7:max,conv5_3:gem(p=0),fc8.pre", pool="mean", norm="l3")
    parts = message.split("; ")
    positions = [
        next(i for i, part in enumerate(parts) if words in part)
        for words in (
            "default pool 'mean'",
            "unknown norm 'l3'",
            "'conv5_5'",
            "'fc7:max'",
            "gem(p=0)",
            "'fc8.pre'",
        )
    ]
    assert positions == sorted(positions)
    assert "fc6" not in message


def test_a_norm_is_no_default_pool() -> None:
    """A norm given as the pool is told apart from it, and the pools are listed."""
    assert refusal("conv5_3", pool="l2") == (
        f"default pool 'l2': unknown pool 'l2'; expected one of {', '.join(POOLS)}; norms are "
        "none, l2, ssr"
    )


def test_unknown_model_is_said_once() -> None:
    """A wrong model is one error, not one for each layer."""
    assert refusal("conv5_3,fc7,conv1_1", model="vgg20").count("unknown model") == 1


def test_layers_are_those_of_the_model() -> None:
    """A layer that only a deeper variant has is refused by name of the model."""
    assert canonical("conv5_4", "vgg19") == ["conv5_4"]
    assert "layer 'conv5_4' is not in vgg16" in refusal("conv5_4", "vgg16")


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("conv5_3", (512,)),
        ("conv1_1:max", (64,)),
        ("conv3_4:gem(p=4)", (256,)),
        ("conv5_4:rmac:l2", (512,)),
        ("conv5_4:regions", (512 * 20,)),
        ("conv5_4:regions(levels=1)", (512 * 2,)),
        ("conv5_4:spp", (512 * 50,)),
        ("conv5_4:spp(1,2,4)", (512 * 21,)),
        ("pool5:flatten", (512 * 6 * 10,)),
        ("conv1_1:map", (64, 200, 333)),
        ("pool1:map", (64, 100, 166)),
        ("conv5_4:map", (512, 12, 20)),
        ("pool5:map", (512, 6, 10)),
        ("fc6", (4096,)),
        ("fc7.pre:l2", (4096,)),
        ("fc8", (37,)),
        ("prob", (37,)),
    ],
)
def test_output_shapes(text: str, shape: tuple[int, ...]) -> None:
    """A row's shape follows from the spec, the image's size, and the classifier's classes."""
    (spec,) = parse_specs(text, "vgg19")
    assert spec.output_shape(200, 333, classes=37) == shape


def test_which_pools_keep_positions() -> None:
    """The pools whose row size depends on the image's size are these."""
    kept = [name for name in POOLS if Pool(name, levels=(1,)).keeps_positions]
    assert kept == ["regions", "flatten", "map"]


POOL_VALUES = st.one_of(
    st.sampled_from([Pool("avg"), Pool("max"), Pool("std"), Pool("flatten"), Pool("map")]),
    st.floats(GEM_SMALLEST_P, allow_infinity=False).map(lambda p: Pool("gem", p=p)),
    st.just(Pool("gem", p=GEM_P)),
    st.integers(1, 14).map(lambda n: Pool("rmac", levels=(n,))),
    st.integers(1, 14).map(lambda n: Pool("regions", levels=(n,))),
    st.lists(st.integers(1, 14), min_size=1, max_size=5).map(
        lambda n: Pool("spp", levels=tuple(n))
    ),
    st.just(Pool("spp", levels=SPP_LEVELS)),
)


@st.composite
def layer_specs(draw: st.DrawFn, model: str) -> LayerSpec:
    layer = draw(st.sampled_from(layer_table(model)))
    pre = layer.relu_index is not None and draw(st.booleans())
    pool = draw(POOL_VALUES) if layer.is_map else None
    return LayerSpec(layer, pre, pool, draw(st.sampled_from(NORMS)))


@given(data=st.data(), model=st.sampled_from(VARIANTS))
def test_canonical_form_reads_back(data: st.DataObject, model: str) -> None:
    """Any specs, written and joined by commas, read back as the same specs without duplicates."""
    specs = data.draw(st.lists(layer_specs(model), min_size=1, max_size=4))
    text = ",".join(map(str, specs))
    assert parse_specs(text, model) == tuple(dict.fromkeys(specs))


@given(spec=layer_specs("vgg19"))
def test_canonical_form_is_a_dataset_name(spec: LayerSpec) -> None:
    """A spec's name has no blank, slash or other character that HDF5 or a shell would mind."""
    assert re.fullmatch(r"[a-z0-9_.:(),=+-]+", str(spec))


@given(text=st.text("conv5_3relu.pre:gemsp(1,2)=l avx ", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Whatever is typed gives specs or a usage error, never another exception."""
    try:
        names = canonical(text)
    except UsageError:
        return
    assert canonical(",".join(names)) == names


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("," * 20_000, "layers: a text of 20000 characters, beginning .*; at most 8192 are read"),
        ("conv1_1," * 20_000, "layers: a text of 160000 characters"),
        ("fc7," * 300, "300 layers are requested; at most 256 are computed"),
        ("x," * 99, "layer 'x' is not in vgg19.*; and 79 more$"),
        ("conv1_1:spp(" + "9" * 5000 + ")", "must be whole numbers from 1 to 14"),
        ("(" * 4000 + "," * 4000, "layer '"),
    ],
)
def test_lists_without_end_are_refused(text: str, says: str) -> None:
    """Long lists, numbers of thousands of digits and open brackets end at once, in one line."""
    with pytest.raises(UsageError, match=says) as found:
        parse_specs(text, "vgg19")
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 3 * 8192


def test_specs_of_blocks_take_all_that_layers_take() -> None:
    """`last(5)` is written with `.pre`, pools and norms, beside other specs."""
    specs = parse_specs("last(5):spp(1,2),LAST(4).PRE:gem:l2,block3,conv5_3", "vgg16")
    assert list(map(str, specs)) == ["conv5_3:spp(1,2)", "conv4_3.pre:gem:l2", "conv3_3", "conv5_3"]
