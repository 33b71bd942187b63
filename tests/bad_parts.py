"""What the tests of damaged folders share."""

import json

import pytest
from safetensors.torch import load_file

from glmkit.errors import CheckpointError
from glmkit.runtime.describe import describe
from glmkit.runtime.loading import load_local

NORM = "transformer.encoder.final_layernorm.weight"
HEAD = "transformer.output_layer.weight"


def refused(folder, said):
    """Check that loading and describing refuse a folder, each in one line."""
    for act in (load_local, describe):
        with pytest.raises(CheckpointError, match=said) as caught:
            act(folder)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def config(folder, **change):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def tensors(folder):
    return {key: each.clone() for key, each in load_file(folder / "model.safetensors").items()}
