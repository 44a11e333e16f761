"""LoRA adapters against diffusers' own, whatever the degree; and switching them."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from drawing import draw
from peft import LoraConfig
from safetensors.torch import save_file
from small_models import write

from bench.crew import Crew, Worker
from executor.adapters import AdapterError
from executor.image import ImageSpec
from executor.latents import pack, unpack
from executor.pipelines import load
from executor.registration import model_info

IMAGE = ImageSpec("a red house under a yellow sun", 112, 144, steps=3, seed=11)
LAYERS = ("attn.to_q", "attn.to_k", "attn.add_v_proj", "ff.net.2", "proj_mlp", "attn.to_out.0")
LIMIT = 1 << 30


def tensors(transformer: torch.nn.Module, seed: int, rank: int = 4) -> dict[str, torch.Tensor]:
    """A random adapter that shows."""
    chance, found = torch.Generator().manual_seed(seed), {}
    for name, layer in transformer.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.endswith(LAYERS):
            for side, shape in (("A", (rank, layer.in_features)), ("B", (layer.out_features, rank))):
                key = f"transformer.{name}.lora_{side}.weight"
                found[key] = 0.3 * torch.randn(*shape, generator=chance)
    return found


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory) -> Path:
    """Three adapters: as it is; with alphas in diffusers' metadata; with alphas as tensors."""
    folder: Path = tmp_path_factory.mktemp("adapters")
    transformer = load(models["4 heads"])._transformer
    save_file(tensors(transformer, 1), folder / "plain.safetensors")
    config = LoraConfig(
        r=4, lora_alpha=8, alpha_pattern={"to_q": 2}, target_modules=["to_q", "to_k"]
    ).to_dict()
    metadata = {f"transformer.{k}": list(v) if isinstance(v, set) else v for k, v in config.items()}
    notes = {"format": "pt", "lora_adapter_metadata": json.dumps(metadata)}
    (folder / "noted").mkdir()
    save_file(tensors(transformer, 2), folder / "noted" / "pytorch_lora_weights.safetensors", notes)
    alphas = tensors(transformer, 3)
    alphas |= {k.replace("lora_A.weight", "alpha"): torch.tensor(6.0) for k in alphas if "lora_A" in k}
    save_file(alphas, folder / "alphas.safetensors")
    (folder / "README.md").write_text("not an adapter")
    return folder


def stock(
    kind, model: str, image: ImageSpec, adapters: Path, steps_beside: dict | None = None
) -> torch.Tensor:
    """The latent that diffusers' own pipeline makes with the adapter."""
    pipeline = kind.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    if image.lora:
        files = [*adapters.glob(f"{image.lora}.safetensors"), *adapters.glob(f"{image.lora}/*.safetensors")]
        pipeline.load_lora_weights(files[0].parent, weight_name=files[0].name, adapter_name="on")
        pipeline.set_adapters("on", image.lora_scale)
    return pipeline(
        image.prompt,
        width=image.width,
        height=image.height,
        num_inference_steps=image.steps,
        generator=torch.Generator("cpu").manual_seed(image.seed),
        output_type="latent",
        **(steps_beside or {}),
    ).images


@pytest.mark.parametrize(
    ("name", "scale"), [("plain", 1.0), ("plain", -0.4), ("noted", 0.7), ("alphas", 1.0)]
)
def test_degree_1_is_diffusers_with_the_adapter_and_switching_back_restores_exactly(
    models, folder, group, name, scale
):
    pipeline = load(models["4 heads"])
    before = draw(pipeline, IMAGE, group).latent
    pipeline.load_adapters(folder, LIMIT)
    image = dataclasses.replace(IMAGE, lora=name, lora_scale=scale)
    pipeline.check(image)
    with_it = draw(pipeline, image, group).latent
    expected = stock(
        FluxPipeline,
        models["4 heads"],
        image,
        folder,
        {"max_sequence_length": pipeline.limits.max_prompt_tokens},
    )
    assert (with_it - expected).abs().max() <= 1e-5
    assert (with_it - before).abs().max() > 0.01
    assert torch.equal(draw(pipeline, IMAGE, group).latent, before)
    # A scale of nothing is nothing.
    assert torch.equal(draw(pipeline, dataclasses.replace(image, lora_scale=0.0), group).latent, before)


def test_an_adapter_of_stable_diffusion_3_works_too(models, group, tmp_path):
    pipeline = load(models["sd3"])
    save_file(tensors(pipeline._transformer, 5), tmp_path / "style.safetensors")
    pipeline.load_adapters(tmp_path, LIMIT)
    image = dataclasses.replace(IMAGE, lora="style", lora_scale=0.5, guidance=3.0)
    expected = stock(
        StableDiffusion3Pipeline,
        models["sd3"],
        image,
        tmp_path,
        {"guidance_scale": 3.0, "max_sequence_length": pipeline.limits.max_prompt_tokens},
    )
    assert (draw(pipeline, image, group).latent - expected).abs().max() <= 1e-4


def steps(worker: Worker, model: str, folder: str, packed: bytes, count: int, slots: list[int], meeting: str):
    pipeline, group = worker.pipeline(model), worker.group(1, slots, meeting)
    if pipeline.adapters is None:
        pipeline.load_adapters(Path(folder), LIMIT)
    state = unpack(packed)
    for _ in range(count):
        (state,) = pipeline.step([state], group)
    return pack(state)


def test_degree_2_draws_the_same_and_requests_with_and_without_take_turns(crew: Crew, models, folder, group):
    model = models["4 heads"]
    pipeline = load(model)
    pipeline.load_adapters(folder, LIMIT)
    images = [
        IMAGE,
        dataclasses.replace(IMAGE, lora="plain"),
        dataclasses.replace(IMAGE, lora="noted", seed=3),
    ]
    expected = [draw(pipeline, image, group).latent for image in images]
    states = [pack(pipeline.start(image, pipeline.encode(image))) for image in images]
    for step in range(IMAGE.steps):
        slots = ([0, 1], [2], [1, 3])[step]
        for i, state in enumerate(states):
            words = (model, str(folder), state, 1, slots, f"lora {step} {i}")
            states[i] = crew.all(slots, steps, *words)[0]
    for state, latent in zip(states, expected, strict=True):
        assert (unpack(state).latent - latent).abs().max() <= 1e-5


def test_requests_with_different_adapters_are_no_batch(models, folder, group):
    pipeline = load(models["4 heads"])
    pipeline.load_adapters(folder, LIMIT)
    condition = pipeline.encode(IMAGE)

    def states(*images):
        return [pipeline.start(image, condition) for image in images]

    on = dataclasses.replace(IMAGE, lora="plain")
    for other in (IMAGE, dataclasses.replace(on, lora="noted"), dataclasses.replace(on, lora_scale=0.5)):
        assert other.batch_key != on.batch_key
        with pytest.raises(ValueError, match="one size and one LoRA"):
            pipeline.step(states(on, other), group)
    pair = pipeline.step(states(on, dataclasses.replace(on, seed=3)), group)
    (alone,) = pipeline.step(states(on), group)
    assert (pair[0].latent - alone.latent).abs().max() <= 1e-5


def test_memory_is_bounded_and_the_adapter_used_longest_ago_goes(models, folder):
    pipeline = load(models["4 heads"])
    pipeline.load_adapters(folder, LIMIT)
    adapters = pipeline.adapters
    assert adapters.nbytes == 0, "read at the start, kept once they are used"
    adapters.use("plain", 1.0)
    one = adapters.nbytes
    pipeline.load_adapters(folder, 2 * one)
    adapters = pipeline.adapters
    for name in ("plain", "noted", "plain", "alphas"):
        adapters.use(name, 1.0)
        assert adapters.nbytes <= 2 * one
    assert list(adapters._loaded) == ["plain", "alphas"]
    pipeline.load_adapters(folder, 0)
    for name in ("plain", "noted"):
        pipeline.adapters.use(name, 1.0)
        assert list(pipeline.adapters._loaded) == [name]


def test_unknown_adapters_are_refused_and_known_ones_are_told(models, folder):
    pipeline = load(models["4 heads"])
    bare = model_info(pipeline, Path(models["4 heads"]))
    with pytest.raises(ValueError, match="lora: 'plain' is not known; this executor has no --lora-dir"):
        pipeline.check(dataclasses.replace(IMAGE, lora="plain"))
    pipeline.load_adapters(folder, LIMIT)
    with pytest.raises(ValueError, match="lora: 'sketch' is not known; there are alphas, noted, plain"):
        pipeline.check(dataclasses.replace(IMAGE, lora="sketch"))
    info = model_info(pipeline, Path(models["4 heads"]))
    assert list(info.loras) == ["alphas", "noted", "plain"]
    assert info.fingerprint != bare.fingerprint


def broken(folder: Path, change) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return change(load_file(folder / "plain.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k.replace("transformer_blocks.0", "transformer_blocks.9"): v for k, v in t.items()},
         "transformer_blocks.9.*is not in this model"),
        (lambda t: {k: v[:, :3].contiguous() if "lora_A" in k else v for k, v in t.items()}, "does not fit"),
        (lambda t: {k: v for k, v in t.items() if "lora_A" in k}, "only one side"),
        (lambda t: {**t, "text_encoder.lora_A.weight": torch.zeros(4, 4)}, "only additions"),
        (lambda _: {"transformer.proj_out.lora_C": torch.zeros(2)}, "only additions"),
    ],
)  # fmt: skip
def test_an_adapter_that_cannot_be_used_is_named_at_the_start(models, folder, tmp_path, change, message):
    save_file(broken(folder, change), tmp_path / "bad.safetensors")
    with pytest.raises(AdapterError, match=f"--lora-dir: .*bad.safetensors.*{message}"):
        load(models["4 heads"]).load_adapters(tmp_path, LIMIT)


def test_folders_that_make_no_sense(models, folder, tmp_path):
    pipeline = load(models["4 heads"])
    with pytest.raises(AdapterError, match="is no folder"):
        pipeline.load_adapters(tmp_path / "nowhere", LIMIT)
    (tmp_path / "cut.safetensors").write_bytes((folder / "plain.safetensors").read_bytes()[:100])
    with pytest.raises(AdapterError, match=r"cannot read .*cut\.safetensors"):
        pipeline.load_adapters(tmp_path, LIMIT)
    (tmp_path / "cut.safetensors").unlink()
    shutil.copy(folder / "plain.safetensors", tmp_path / "a:b.safetensors")
    with pytest.raises(AdapterError, match="a name has"):
        pipeline.load_adapters(tmp_path, LIMIT)
    pixart = load(write(tmp_path / "pixart", "pixart"))
    with pytest.raises(AdapterError, match="no adapters for PixArt"):
        pixart.load_adapters(folder, LIMIT)
