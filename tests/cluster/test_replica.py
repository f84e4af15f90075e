"""What an engine checks before anything starts: the checkpoint and its vocabulary."""

import json
import shutil
from pathlib import Path

import pytest

from moeray.cluster.config import Settings
from moeray.cluster.replica import ModelRefused, prepare_model
from moeray.vocabulary.o200k import packaged_ranks_path


def test_a_checkpoint_is_named_after_its_folder(random_model: Path) -> None:
    facts = prepare_model(Settings(model=random_model))
    assert (facts.name, facts.path, facts.embedded) == (random_model.name, random_model, False)
    assert prepare_model(Settings(model=random_model, model_name="mine")).name == "mine"


def test_the_embedded_model_is_found_in_the_cache(
    embedded_model: Path, embedded_cache: Path
) -> None:
    facts = prepare_model(Settings(cache_dir=embedded_cache))
    assert (facts.name, facts.path, facts.embedded) == ("moeray-embedded", embedded_model, True)


def test_both_layouts_of_a_tokenizer_file_are_taken(random_model: Path) -> None:
    for tokenizer in (packaged_ranks_path(), random_model / "tokenizer.json"):
        prepare_model(Settings(model=random_model, tokenizer_file=tokenizer))


@pytest.mark.parametrize("text", ["{}", "no tokenizer"])
def test_a_wrong_tokenizer_file_is_named(random_model: Path, tmp_path: Path, text: str) -> None:
    wrong = tmp_path / "tokenizer.model"
    wrong.write_text(text)
    with pytest.raises(ModelRefused, match=str(wrong)):
        prepare_model(Settings(model=random_model, tokenizer_file=wrong))


def test_another_vocabulary_size_is_refused(random_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(random_model, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"vocab_size": 1000}))
    with pytest.raises(ModelRefused, match=r"config\.json|1000"):
        prepare_model(Settings(model=copy))
