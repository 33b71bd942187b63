"""What the original code gave on tiny checkpoints, against the same folders through transformers.

Shapes: B rows, T tokens, V vocabulary.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

GENERATIONS = ("chatglm-6b-tiny", "chatglm2-6b-tiny", "chatglm3-6b-tiny", "glm-4-9b-tiny")
CALLED_WITH = ("input_ids", "attention_mask", "position_ids")


pytestmark = pytest.mark.usefixtures("registered")


class Recorded:
    """A checkpoint with its model and everything that the original code gave on it."""

    def __init__(self, root: Path, name: str) -> None:
        auto = transformers.AutoModelForCausalLM
        self.name = name
        self.model = auto.from_pretrained(root / "checkpoints" / name).float()
        self.arrays = np.load(root / "expected" / f"{name}.npz")

    def cases(self, field: str):
        """Yield the name and the fields of each case that has one of that name."""
        for case in sorted({key.split(".")[0] for key in self.arrays.files}):
            found = {
                key.split(".", 1)[1]: torch.from_numpy(self.arrays[key])
                for key in self.arrays.files
                if key.startswith(case + ".")
            }
            if field in found:
                yield case, found


@pytest.fixture(scope="module", params=GENERATIONS)
def recorded(request: pytest.FixtureRequest, shared_reference: Path) -> Recorded:
    return Recorded(shared_reference, request.param)


def given(fields: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: fields[name] for name in names or CALLED_WITH if name in fields}


def real(case: str, fields: dict[str, torch.Tensor]) -> torch.Tensor:
    if "valid" in fields:
        return fields["valid"].bool()
    if case == "batch_leftpad":
        return fields["attention_mask"].bool()
    return torch.ones_like(fields["input_ids"], dtype=torch.bool)


def test_scores_losses_and_hidden_states_are_the_originals(recorded: Recorded):
    for case, fields in recorded.cases("logits"):
        with torch.no_grad():
            out = recorded.model(**given(fields, *CALLED_WITH, "labels"), output_hidden_states=True)
        rows = real(case, fields)
        torch.testing.assert_close(out.logits[rows], fields["logits"][rows], atol=1e-4, rtol=0)
        if "loss" in fields:
            assert abs(float(out.loss - fields["loss"])) <= 1e-5, case
        if "hidden_states" in fields:
            # The last entry is normed, as in all of transformers; generations 2 and up recorded
            # it before the norm.
            last = -1 if recorded.name != "chatglm-6b-tiny" else None
            ours, theirs = torch.stack(out.hidden_states), fields["hidden_states"]
            assert ours.shape == theirs.shape
            torch.testing.assert_close(ours[:last], theirs[:last], atol=1e-4, rtol=0)


def test_a_prompt_without_mask_and_positions_is_placed_by_the_model(recorded: Recorded):
    for field in ("logits_model_built", "logits_last8"):
        for _, fields in recorded.cases(field):
            with torch.no_grad():
                logits = recorded.model(fields["input_ids"]).logits[:, -fields[field].shape[1] :]
            torch.testing.assert_close(logits, fields[field], atol=1e-4, rtol=0)


@pytest.mark.parametrize("names", [CALLED_WITH, CALLED_WITH[:2]])
def test_greedy_answers_are_the_originals(recorded: Recorded, names: tuple[str, ...]):
    for case, fields in recorded.cases("generated"):
        out = recorded.model.generate(
            **given(fields, *names), max_new_tokens=32, do_sample=False, eos_token_id=511
        )
        assert torch.equal(out, fields["generated"]), case


def test_steps_behind_a_cache_are_the_originals(recorded: Recorded):
    fields = dict(recorded.cases("step_logits"))["decode_steps"]
    ids, forced = fields["input_ids"], fields["forced"]
    cache = transformers.DynamicCache()
    model = recorded.model
    whole = torch.cat((ids, forced), dim=1)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        for at in range(forced.shape[1]):
            end = ids.shape[1] + at + 1
            inputs = model.prepare_inputs_for_generation(
                whole[:, :end], next_sequence_length=1, past_key_values=cache
            )
            step = model(**inputs).logits[:, -1]
            torch.testing.assert_close(step, fields["step_logits"][:, at], atol=1e-4, rtol=0)
        if "chunk" in fields:
            chunk = model(fields["chunk"], past_key_values=cache).logits
            torch.testing.assert_close(chunk, fields["chunk_logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "name",
    [
        "chatglm-6b-tiny-ptuning",
        "chatglm-6b-tiny-ptuning-proj",
        "chatglm2-6b-tiny-ptuning",
        "chatglm2-6b-tiny-ptuning-proj",
        "chatglm3-6b-tiny-ptuning",
    ],
)
def test_a_trained_prefix_is_loaded_as_the_original_recipe_does(shared_reference: Path, name: str):
    folder = shared_reference / "checkpoints" / name
    config = transformers.AutoConfig.from_pretrained(folder)
    base = folder.parent / name.split("-ptuning")[0]
    model = transformers.AutoModel.from_pretrained(base, config=config).float()
    saved = torch.load(folder / "pytorch_model.bin", weights_only=True)
    start = "transformer.prefix_encoder."
    model.transformer.prefix_encoder.load_state_dict(
        {key.removeprefix(start): value for key, value in saved.items() if key.startswith(start)}
    )
    recorded = Recorded.__new__(Recorded)
    recorded.arrays = np.load(shared_reference / "expected" / f"{name}.npz")
    for case, fields in recorded.cases("logits"):
        with torch.no_grad():
            logits = model(**given(fields)).logits
        rows = real(case, fields)
        torch.testing.assert_close(logits[rows], fields["logits"][rows], atol=1e-4, rtol=0)
    for case, fields in recorded.cases("generated"):
        out = model.generate(**given(fields), max_new_tokens=32, do_sample=False, eos_token_id=511)
        ends = fields["generated"].shape[1]
        stopped = (out == 511).any(-1)
        assert torch.equal(out[~stopped], fields["generated"][~stopped][:, :ends]), case


@pytest.mark.parametrize(
    "name",
    [
        "chatglm-6b-tiny-int4",
        "chatglm-6b-tiny-int8",
        "chatglm-6b-tiny-int4-qe",
        "chatglm2-6b-tiny-int4",
        "chatglm2-6b-tiny-int8",
    ],
)
def test_official_rounded_folders_run_and_are_what_quantize_makes(
    shared_reference: Path, name: str
):
    folder = shared_reference / "checkpoints" / name
    arrays = np.load(shared_reference / "expected" / "quant.npz")
    fields = {
        field: torch.from_numpy(arrays[f"{name}.{field}"])
        for field in ("input_ids", "logits", "generated")
    }
    official = transformers.AutoModel.from_pretrained(folder)
    base = transformers.AutoModel.from_pretrained(folder.parent / name.split("-int")[0])
    made = base.quantize(8 if "int8" in name else 4, quantize_embeddings=name.endswith("qe"))
    ours, theirs = made.state_dict(), official.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    ids = fields["input_ids"]
    with torch.no_grad():
        logits = official.float()(ids).logits
    torch.testing.assert_close(logits, fields["logits"], atol=1e-4, rtol=0)
    new = fields["generated"].shape[1] - ids.shape[1]
    out = official.generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=511)
    assert torch.equal(out, fields["generated"])
