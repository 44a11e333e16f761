"""Checkpoint folders of every family that cannot be loaded: the message says what is wrong, at the start."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from small_models import write

from executor.pipelines import ModelError, load
from model.captions import caption_words

MODELS = {
    "4 heads": ("transformer", "vae", "text_encoder", "text_encoder_2"),
    "sd3": ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"),
    "pixart": ("transformer", "vae", "text_encoder"),
}
FAMILIES = [*MODELS]
WEIGHTS = [(name, part) for name, parts in MODELS.items() for part in parts]
TOKENIZERS = [
    (name, part.replace("text_encoder", "tokenizer")) for name, part in WEIGHTS if "text_encoder" in part
]


@pytest.fixture
def name() -> str:
    """The model that a test is about where it does not say."""
    return "4 heads"


@pytest.fixture
def folder(models, tmp_path, name) -> Path:
    return Path(shutil.copytree(models[name], tmp_path / "model"))


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as failure:
        load(folder)
    return str(failure.value)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_folder_that_is_no_checkpoint(tmp_path):
    assert "no model folder" in refused(tmp_path / "nowhere")
    assert "model_index.json is missing" in refused(tmp_path)
    for text, message in [("{", "cannot read"), ("[]", "not a JSON object"), ("{}", "has no _class_name")]:
        (tmp_path / "model_index.json").write_text(text)
        assert message in refused(tmp_path)


def test_an_unknown_family(folder):
    edit(folder / "model_index.json", _class_name="KandinskyPipeline")
    families = "FluxPipeline, PixArtSigmaPipeline, StableDiffusion3Pipeline"
    assert refused(folder) == f"unknown model family 'KandinskyPipeline': there are {families}"


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_that_are_missing(folder, name):
    index = json.loads((folder / "model_index.json").read_text())
    parts = [part for part, source in index.items() if isinstance(source, list) and source[0]]
    assert {*MODELS[name], "scheduler"} < {*parts}
    for part in parts:
        (folder / part).rename(folder / "away")
        assert f"{part} is missing" in refused(folder)
        (folder / part).mkdir()
        assert f"{part} has no configuration" in refused(folder)
        (folder / part).rmdir()
        (folder / "away").rename(folder / part)
    for part in parts:
        edit(folder / "model_index.json", **{part: [None, None]})
        if part not in ("text_encoder_3", "tokenizer_3"):
            assert f"model_index.json names no {part}" in refused(folder)
        edit(folder / "model_index.json", **{part: index[part]})
    load(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_classes_that_are_not_there(folder):
    index = folder / "model_index.json"
    for source in (["diffusers", "Nope"], ["somewhere", "Model"]):
        edit(index, transformer=source)
        assert f"wants {source[0]}.{source[1]} as transformer: there is no such class" in refused(folder)
    edit(index, transformer=["diffusers", "AutoencoderKL"])
    refused(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_schedulers_that_step_otherwise(folder):
    edit(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    assert "unknown scheduler DDIMScheduler: there is " in refused(folder)
    edit(folder / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"])
    assert "unknown scheduler EulerDiscreteScheduler: there is " in refused(folder)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("4 heads", {"stochastic_sampling": True}),
        ("sd3", {"stochastic_sampling": True}),
        ("pixart", {"algorithm_type": "sde-dpmsolver++"}),
    ],
)
def test_schedulers_that_add_noise(folder, setting):
    edit(folder / "scheduler" / "scheduler_config.json", **setting)
    assert "is not supported" in refused(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_configurations_that_cannot_be_read(folder):
    for file in ("transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"):
        whole = (folder / file).read_text()
        for text, message in (
            ("{", "cannot read"),
            ("[]", "not a JSON object"),
            ("{}", "has no _class_name: not a configuration of diffusers"),
        ):
            (folder / file).write_text(text)
            assert message in (why := refused(folder))
            assert file in why
        (folder / file).write_text(whole)
    edit(folder / "transformer/config.json", num_attention_heads="four")
    refused(folder)


@pytest.mark.parametrize(("name", "part"), WEIGHTS)
def test_missing_cut_and_corrupt_weights(folder, part):
    (weights,) = (folder / part).glob("*.safetensors")
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"junk" * 100):
        weights.write_bytes(damaged)
        assert f"corrupt weights in {weights}" in refused(folder)
    weights.unlink()
    assert f"{part} has no weights" in refused(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_missing_shard(folder):
    index = {"weight_map": {"a": "shard-1.safetensors", "b": "shard-2.safetensors"}}
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert "shard-1.safetensors is missing" in refused(folder)


@pytest.mark.parametrize(("name", "part"), WEIGHTS)
def test_weights_that_do_not_fit_the_configuration(folder, part):
    (weights,) = (folder / part).glob("*.safetensors")
    tensors = load_file(weights)
    key = next(key for key in tensors if tensors[key].ndim == 2 or part == "vae")
    save_file({k: v for k, v in tensors.items() if k != key}, weights, {"format": "pt"})
    assert key in refused(folder)
    save_file(tensors | {key: torch.zeros(3, 3)}, weights, {"format": "pt"})
    assert key in refused(folder)


@pytest.mark.parametrize(("name", "part"), TOKENIZERS)
def test_tokenizers_without_words(folder, part):
    vocabulary = folder / part / "tokenizer.json"
    whole = vocabulary.read_text()
    for damaged in ("", whole[:500], "{}"):
        vocabulary.write_text(damaged)
        assert f"cannot read {vocabulary}" in refused(folder)
    vocabulary.unlink()
    assert f"{part} has no vocabulary" in refused(folder)
    (folder / part / "vocab.json").write_text("{}")
    assert "merges.txt is missing" in refused(folder)


@pytest.mark.parametrize(("name", "part"), TOKENIZERS)
def test_tokenizers_of_another_model(folder, part):
    content = json.loads((folder / part / "tokenizer.json").read_text())
    known = max(token["id"] for token in content["added_tokens"])
    token = content["added_tokens"][0]
    content["added_tokens"] += [
        {**token, "id": known + 10_000 + i, "content": f"<{i}>"} for i in range(10_000)
    ]
    (folder / part / "tokenizer.json").write_text(json.dumps(content))
    assert "they are of different models" in refused(folder)


@pytest.mark.parametrize(
    ("name", "part", "changes", "message"),
    [
        ("4 heads", "vae", {"latent_channels": 8}, "in_channels of transformer"),
        ("4 heads", "text_encoder_2", {"text_width": 64}, "joint_attention_dim of transformer is 32"),
        ("4 heads", "text_encoder", {"text_width": 64}, "pooled_projection_dim of transformer is 32"),
        ("sd3", "vae", {"latent_channels": 8}, "in_channels of transformer"),
        ("sd3", "text_encoder", {"width": 24}, "both CLIP encoders is 40, pooled_projection_dim"),
        ("sd3", "text_encoder_3", {"width": 24}, "joint_attention_dim of transformer is 32"),
        ("pixart", "vae", {"latent_channels": 8}, "in_channels of transformer"),
        ("pixart", "text_encoder", {"text_width": 64}, "caption_channels of transformer is 32"),
    ],
)
def test_parts_of_different_models(folder, tmp_path, name, part, changes, message):
    other = Path(write(tmp_path / "other", name, **changes))
    load(other)
    shutil.rmtree(folder / part)
    shutil.copytree(other / part, folder / part)
    assert message in (why := refused(folder))
    assert "they are of different models" in why


def test_pixart_alpha_is_not_sigma(tmp_path):
    folder = Path(write(tmp_path, "pixart", additional_conditions=True))
    assert "use_additional_conditions" in refused(folder)


# And some that can be.


def test_a_tokenizer_as_sentencepiece_wrote_it(models, tmp_path):
    """PixArt-Sigma's has no other file."""
    folder = Path(shutil.copytree(models["pixart"], tmp_path / "model"))
    words = sorted(caption_words())
    (tmp_path / "words").write_text("\n".join(words))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "words"),
        model_prefix=str(folder / "tokenizer" / "spiece"),
        vocab_size=80,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer" / "tokenizer.json").unlink()
    tokenizer = load(folder)._parts.tokenizer
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer" / "spiece.model"))
    for text in ("a red house under a yellow sun", "A boat.", "zzz qq"):
        assert tokenizer(text).input_ids == [*reference.encode(text), 1]
