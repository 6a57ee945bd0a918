"""Settings take what Python has, and become the one form that is compared and recorded."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch

from vggfeat import Settings
from vggfeat.errors import UsageError

SAME: dict[str, tuple[Any, Any]] = {
    "layers": (["conv5_3:spp(1,2)", "fc7"], "conv5_3:spp(1,2),fc7"),
    "mean": ((0.5, 0.25, 1), "0.5,0.25,1"),
    "std": (0.25, "0.25"),
    "window": ((40, 400.5), "40,400.5"),
    "clip": (np.array([0.5, 99.5]), "0.5,99.5"),
    "clahe": (2, "2"),
    "augment": (("mirror", "blur"), "mirror,blur"),
    "weights": (pathlib.Path("weights") / "a.pth", "weights/a.pth"),
    "size": (np.int64(64), 64),
    "batch_size": (torch.tensor(8), 8),
    "decode_timeout": (np.float32(2.5), 2.5),
    "max_failures": (3, "3"),
    "max_removed": (0, "0"),
    "dtype": (np.float32, "float32"),
    "precision": (torch.bfloat16, "bfloat16"),
    "device": ([torch.device("cuda:0"), "cuda:1"], "cuda:0,cuda:1"),
}


@pytest.mark.parametrize("name", SAME)
def test_what_python_has_is_the_text_of_the_command_line(name: str) -> None:
    """The settings are equal, and so is what a cache records of them."""
    given, text = SAME[name]
    others: dict[str, Any] = {} if name == "layers" else {"layers": "conv1_1"}
    found, right = Settings(**others, **{name: given}), Settings(**others, **{name: text})
    assert found == right
    assert json.dumps(found.as_dict()) == json.dumps(right.as_dict())
    assert found.preprocess() == right.preprocess()
    assert type(getattr(found, name)) is type(getattr(right, name))
    assert Settings.for_weights(**{"weights": "random:0", **others, name: given}) == (
        Settings.for_weights(**{"weights": "random:0", **others, name: text})
    )


def test_numpys_type_of_a_dtype() -> None:
    """A dtype object is its name too."""
    assert Settings(layers="conv1_1", dtype=np.dtype(np.float16)).dtype == "float16"  # type: ignore[arg-type] # as documented


WRONG: dict[str, tuple[Any, str]] = {
    "layers": (["conv5_3", 3], r"layers is \['conv5_3', 3\]; expected text"),
    "mean": ([0.5, "x", 0.1], r"mean is \[0.5, 'x', 0.1\]; expected text"),
    "window": ((40,), "window is '40'; expected level and width"),
    "size": (True, "size is True; expected a whole number"),
    "dtype": (np.float64, "unknown dtype"),
    "weights": ({"a": 1}, "weights are no state dict of tensors: 'a' is a int; give model.state"),
    "model": (["vgg16"], r"model is \['vgg16'\]; expected text"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_none_of_these_is_refused(name: str) -> None:
    """In one line, as given."""
    given, message = WRONG[name]
    with pytest.raises(UsageError, match=message) as error:
        Settings(**{"layers": "conv1_1", name: given})
    assert "\n" not in str(error.value)
