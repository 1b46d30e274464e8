"""Hub names without a network: the hub's cache is a folder made here, its errors are raised by hand."""

from __future__ import annotations

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from pycotmech.model.loading import load
from tests.reference.tiny import same_model, tiny_llama

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, offline; gives the snapshot folder of some-lab/some-model, whose branch main is known."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--some-lab--some-model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def test_a_cached_model_loads_without_a_network(hub):
    model = tiny_llama(n_key_value_heads=2)
    model.save_pretrained(hub)
    for revision in (None, "main", COMMIT):
        loaded = load("some-lab/some-model", revision=revision)
        assert same_model(loaded.model, model)
        assert loaded.name == "some-lab/some-model"


def test_a_name_that_is_nowhere_says_where_was_looked(hub):
    with pytest.raises(FileNotFoundError) as caught:
        load("some-lab/other-model")
    message = str(caught.value)
    for part in (
        "'some-lab/other-model' is not an alias",
        "tiny-cot",
        "not a path",
        "Hugging Face cache",
        "HF_HUB_OFFLINE",
    ):
        assert part in message
    with pytest.raises(FileNotFoundError, match="not an installed package with a GGUF file"):
        load("numpy")  # installed, but no model


def test_the_family_is_checked_before_the_weights_come(hub, monkeypatch):
    (hub / "config.json").write_text('{"model_type": "mamba"}')

    def no_download(*args, **kwargs):
        raise AssertionError("the weights were asked for")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_download)
    with pytest.raises(ValueError, match=r"some-lab/some-model is of model_type 'mamba': it has no attention.*llama"):
        load("some-lab/some-model")


def test_only_what_is_needed_is_asked_for(hub, monkeypatch):
    model = tiny_llama()
    model.save_pretrained(hub)
    asked = {}

    def download(name, **options):
        asked.update(options)
        return str(hub)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load("some-lab/some-model")
    assert not any(pattern.endswith((".py", ".bin", ".pth", "*.*")) for pattern in asked["allow_patterns"])


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (errors.GatedRepoError, PermissionError, "hf auth login"),
        (errors.RepositoryNotFoundError, FileNotFoundError, "the hub has no model of that name"),
        (errors.RevisionNotFoundError, FileNotFoundError, "has no revision 'v9'"),
    ],
)
def test_what_the_hub_answers_is_passed_on_in_plain_words(hub, monkeypatch, error, raised, message):
    def refuse(*args, **kwargs):
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(raised, match=message):
        load("some-lab/some-model", revision="v9")


def test_a_snapshot_that_lacks_its_weights_is_refused(hub):
    tiny_llama().save_pretrained(hub)
    (hub / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        load("some-lab/some-model")
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
        load("some-lab/some-model", gguf_file="weights.gguf")
