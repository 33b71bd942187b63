from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from glmkit.console import drain
from glmkit.dataset import open_data
from glmkit.dataset.specs import is_saved
from glmkit.errors import DataError, UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.training.config import TrainConfig
from glmkit.training.intake import taken_in
from glmkit.training.saved import SavedData, reading_saved
from glmkit.training.tokens import Tokens

pa = pytest.importorskip("pyarrow")

ROWS = {
    "input_ids": [[1, 2, 3, 4], [0, 0, 5, 6], [7, 8, 0, 0], list(range(1, 31))],
    "labels": [
        [-100, -100, 3, 4],
        [-100, -100, -100, 6],
        [-100, 8, -100, -100],
        [-100] * 20 + list(range(21, 31)),
    ],
    "attention_mask": [[1] * 4, [0, 0, 1, 1], [1, 1, 0, 0], [1] * 30],
}


def saved(folder: Path, columns: dict = ROWS, files: int = 2, **schema: object) -> Path:
    """Write a folder as `datasets.save_to_disk` does."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns, **schema)
    names = [f"data-{at:05d}-of-{files:05d}.arrow" for at in range(files)]
    size = -(-len(table) // files)
    for at, name in enumerate(names):
        part = table.slice(at * size, size)
        with (
            pa.OSFile(str(folder / name), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(part, max_chunksize=3)
    (folder / "dataset_info.json").write_text("{}")
    listed = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(listed))
    return folder


def read(folder: Path, **settings: object) -> Tokens:
    options = {"vocab_size": 64} | settings
    return drain(reading_saved(SavedData(folder), cache=folder.parent / "cache", **options))


def test_saved_rows_are_read(tmp_path):
    folder = saved(tmp_path / "data")
    assert is_saved(folder)
    found = read(folder, max_length=25)
    # Without pads, and without what follows the last token that is learnt.
    assert [each.ids.tolist() for each in found] == [
        [1, 2, 3, 4],
        [5, 6],
        [7, 8],
        list(range(1, 26)),
    ]
    assert [each.weights.tolist() for each in found][:3] == [[0, 0, 1, 1], [0, 1], [0, 1]]
    assert found.totals.tolist() == [2, 1, 1, 5]
    assert str(found.tally) == "4 samples, 1 answers cut at max_length"
    assert len(read(folder, max_length=25, overlong="skip")) == 3


def test_without_labels_all_is_learnt(tmp_path):
    found = read(saved(tmp_path / "data", {"input_ids": [[1, 2, 3]]}, files=1))
    assert found[0].weights.tolist() == [1, 1, 1]


def test_of_several_splits_train_is_read(tmp_path):
    saved(tmp_path / "all" / "train")
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert is_saved(tmp_path / "all")
    assert len(read(tmp_path / "all")) == 4
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["test"]}')
    with pytest.raises(DataError, match="has the splits test, and no 'train'"):
        read(tmp_path / "all")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": ["a"]}, "has the columns text, and no input_ids"),
        ({"input_ids": ["a"]}, "input_ids is string; expected lists of whole numbers"),
        ({"input_ids": [[1, 2]], "labels": [[1]]}, "row 1: input_ids, labels and attention_mask"),
        ({"input_ids": [[1, 2]], "labels": [[2, -100]]}, "labels must not be shifted"),
        ({"input_ids": [[1, 64]]}, "token ids are 1 to 64, and the model knows 0 to 63"),
        ({"input_ids": [[1], None]}, "input_ids is missing in 1 rows"),
        ({"input_ids": [[1, None]]}, "input_ids holds 1 empty places"),
        ({"input_ids": [[1, 2]], "labels": [[-100, -100]]}, "nothing in it is learnt"),
    ],
)
def test_bad_columns_are_refused(tmp_path, columns, said):
    with pytest.raises(DataError, match=said):
        read(saved(tmp_path / "data", columns, files=1))


def test_damaged_folders_are_refused(tmp_path):
    folder = saved(tmp_path / "data")
    file = folder / "data-00001-of-00002.arrow"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"data-00001-of-00002.arrow is damaged"):
        read(folder)
    file.unlink()
    with pytest.raises(DataError, match=r"lacks data-00001-of-00002.arrow"):
        read(folder)
    (folder / "state.json").write_text("[]")
    with pytest.raises(DataError, match=r"state.json is damaged"):
        read(folder)


def test_a_run_takes_tokenised_data_in(tmp_path):
    model = tiny_checkpoint(tmp_path / "model", layout="glm4-9b")
    folder = saved(tmp_path / "data")
    config = TrainConfig(
        model=str(model), data=(str(folder),), eval_data=(str(folder),), output=str(tmp_path / "o")
    )
    intake = drain(taken_in(config, 1))
    assert intake.samples == 4
    assert intake.held is not None
    assert intake.feed.batches(0, 0)[0].tokens == 4 + 2 + 2 + 30
    assert "tokenised rows in 2 files" in intake.described
    for wrong in ({"val_size": 2.0, "eval_data": ()}, {"data": (str(folder), str(model))}):
        with pytest.raises(UsageError, match=r"val_size keeps samples|not mixed"):
            drain(taken_in(replace(config, **wrong), 1))


def test_rows_are_counted_in_their_file(tmp_path):
    columns = {"input_ids": [[1, 2], [3, 4], [5, 99]]}
    with pytest.raises(
        DataError, match=r"data-00001-of-00002\.arrow, row 1: token ids are 5 to 99"
    ):
        read(saved(tmp_path / "data", columns), vocab_size=64)


@pytest.mark.parametrize("amount", ["", "#2"])
def test_commands_that_read_texts_say_who_takes_tokens(tmp_path, amount):
    folder = saved(tmp_path / "data")
    with pytest.raises(DataError, match="'glmkit finetune' alone takes.*give the files it was"):
        open_data([f"{folder}{amount}"])


def test_tokens_say_themselves_what_is_learnt(tmp_path):
    folder = saved(tmp_path / "data")
    config = TrainConfig(data=(str(folder),), train_on="last", output=str(tmp_path / "out"))
    with pytest.raises(UsageError, match="train_on 'last' chooses answers, and tokenised data"):
        drain(taken_in(config, 1))
