"""What loading takes of memory, measured on a checkpoint of some size in processes of their own."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime import loading, pages
from glmkit.runtime.loading import load_local
from glmkit.runtime.memory import readable
from glmkit.runtime.weights import Weights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SCRIPT = Path(__file__).parent.parent / "benchmarks" / "memory.py"
MOST = 1.2
"""Times the checkpoint, where the dtype is kept, or made smaller."""


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("memory_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


WAYS = [
    ((1, "bin", "float16"), "kept"),
    ((1, "bin", "float16"), "int4"),
    ((3, "safetensors", "bfloat16"), "other half"),
]


@pytest.fixture(scope="module")
def written(benchmark, tmp_path_factory):
    folders = {}

    def at(key):
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("large")
            benchmark.write(folders[key], benchmark.Checkpoint(*key), 0.25)
        return folders[key]

    yield at
    for folder in folders.values():
        for file in folder.iterdir():
            file.unlink()


@pytest.fixture
def load(benchmark, forks):
    code = """
        import json, sys
        from pathlib import Path

        sys.path.insert(0, sys.argv[1])
        from memory import measured

        print(json.dumps(measured(Path(sys.argv[2]), json.loads(sys.argv[3]))))
    """

    def figures(folder, how):
        said = forks.run(code, SCRIPT.parent, folder, json.dumps(how))
        return benchmark.figures_of(folder, json.loads(said))

    return figures


@pytest.mark.parametrize(("key", "way"), WAYS)
def test_loading_and_the_first_tokens_do_not_double_memory(benchmark, load, written, key, way):
    how = benchmark.Checkpoint(*key).ways()[way]
    figures = load(written(key), how)
    assert figures.checkpoint > 200e6
    assert 0.2 < figures.ratio <= MOST, figures


def test_conversion_holds_one_copy(load, written):
    """Twice the bytes in float32, and not three times: what is converted is let go."""
    figures = load(written((3, "safetensors", "bfloat16")), {"dtype": "float32"})
    assert figures.ratio <= 2 + (MOST - 1), figures


def resident(file):
    """Return how much of a file's mapping is in memory, in bytes."""
    inside, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and line.split()[0][-1] != ":":
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.parametrize("files", ["safetensors", "bin"])
def test_released_tensors_are_read_again(tmp_path, files):
    big = torch.arange(3 << 20, dtype=torch.float32).view(1024, -1)
    name = f"{'model' if files == 'safetensors' else 'pytorch_model'}.{files}"
    if files == "bin":
        torch.save({"a": big}, tmp_path / name)
    else:
        from safetensors.torch import save_file

        save_file({"a": big}, tmp_path / name)
    weights = Weights(tmp_path)
    seen = weights["a"]
    assert torch.equal(seen, big)
    held = resident(tmp_path / name)
    assert held >= big.nbytes
    weights.release("a")
    assert resident(tmp_path / name) < held / 4
    assert torch.equal(seen, big), "it is read from the file again"


def test_files_that_cannot_be_mapped_keep_their_numbers(tmp_path):
    big = torch.ones(1 << 20)
    torch.save({"a": big}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    weights = Weights(tmp_path)
    weights.release("a")
    assert torch.equal(weights["a"], big)


@pytest.mark.parametrize("how", [{}, {"quantize": "int8"}, {"quantize": "int4"}])
def test_tables_stay_as_they_are_stored(tmp_path, how):
    folder = tiny_checkpoint(tmp_path, dtype=torch.float16)
    model = load_local(folder, **how).model
    table = model.transformer.embedding.word_embeddings
    assert table.weight.dtype == torch.float16
    assert table(torch.tensor([[3]])).dtype == torch.float32


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_what_would_fill_memory_keeps_its_half_precision(tmp_path, monkeypatch, stored):
    folder = tiny_checkpoint(tmp_path, dtype=stored)
    assert load_local(folder).model.like.dtype == torch.float32
    monkeypatch.setattr(loading, "available_memory", lambda: 100_000)
    model = load_local(folder)
    assert model.model.like.dtype == stored
    assert torch.isfinite(model.logits(torch.tensor([[5, 60, 7]]))).all()
    assert load_local(folder, quantize="int4").model.like.dtype == torch.float32


def test_available_memory_is_told():
    assert 1 << 20 < pages.available_memory() <= 1 << 45


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.50 KiB"),
        (1023 << 20, "1023 MiB"),
        (99.5 * 2**30, "99.50 GiB"),
        (1500 << 30, "1500 GiB"),
    ],
)
def test_sizes_are_written_in_the_unit_that_shows_them(size, text):
    assert readable(size) == text
