"""Loading models: what is made, and what is told of what cannot be loaded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import SMALL

from hybridgraph.errors import UserError
from hybridgraph.machine.device import device_name
from hybridgraph.models.hub import location_of
from hybridgraph.models.loading import device_called, load_model, oom_as_user_error

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
LLAMA = SMALL | {"model_type": "llama", "num_hidden_layers": 1}


def load(name: str | Path, load_format: str = "dummy", seed: int = 0) -> torch.nn.Module:
    return load_model(str(name), load_format=load_format, dtype="float32", device=CPU, seed=seed).module


def test_dummy_weights_are_a_function_of_the_seed() -> None:
    one, same, other = (load("tiny-llama", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_dummy_buffers_are_the_architectures_own() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from hybridgraph.models.shapes import builtin_config

    expected = LlamaRotaryEmbedding(LlamaConfig(**(builtin_config("tiny-llama") or {}))).inv_freq
    assert torch.equal(load("tiny-llama").model.rotary_emb.inv_freq, expected)  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("lacks", r"lack 1 weights, such as model\.layers\.0\.mlp\.up_proj"),
        ("shape", r"model\.norm\.weight is \[127\] in its files, \[128\] by its config\.json"),
        ("scales", r"hold 28 numbers beside the weights, such as .*_scale, which its config\.json does not announce"),
        ("biases", r"hold 4 numbers beside the weights, such as model\.layers\.0\.self_attn\.q_proj\.bias, which"),
        ("truncated", "cannot be loaded"),
        ("garbage", "cannot be loaded"),
    ],
)
def test_weights_that_are_not_the_models_are_refused(tmp_path: Path, damage: str, said: str) -> None:
    from safetensors.torch import load_file, save_file

    load("tiny-llama").save_pretrained(tmp_path)  # type: ignore[operator]
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    projections = {name: weight for name, weight in weights.items() if "_proj" in name}
    if damage == "lacks":
        del weights["model.layers.0.mlp.up_proj.weight"]
    elif damage == "shape":
        weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
    elif damage == "scales":  # as NVIDIA's ModelOpt leaves them
        weights |= {name: weight.to(torch.float8_e4m3fn) for name, weight in projections.items()}
        weights |= {f"{name}_scale": torch.tensor(1 / 771) for name in projections}
    elif damage == "biases":
        queries = {name: weight for name, weight in projections.items() if "q_proj" in name}
        weights |= {name.replace("weight", "bias"): torch.ones(weight.shape[0]) for name, weight in queries.items()}
    save_file(weights, path, metadata={"format": "pt"})
    if damage in ("truncated", "garbage"):
        path.write_bytes(b"no safetensors at all" if damage == "garbage" else path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=said) as error:
        load(tmp_path, "auto")
    assert "\n" not in str(error.value)


def test_weights_that_have_no_place_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    load("tiny-llama").save_pretrained(tmp_path)  # type: ignore[operator]
    weights = load_file(tmp_path / "model.safetensors") | {"vision_tower.weight": torch.ones(3)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load(tmp_path, "auto")
    said = capsys.readouterr().err
    assert f"model '{tmp_path}': 1 weights of its files have no place in it, such as vision_tower.weight" in said
    assert "LOAD REPORT" not in said


@pytest.mark.parametrize(
    ("file", "numbers", "said"),
    [
        ("config.json", {"quantization_config": {"quant_method": "fp8"}}, r"its weights are quantized \(fp8\)"),
        ("config.json", {"text_config": {"quantization_config": {"quant_method": "awq"}}}, r"quantized \(awq\)"),
        ("config.json", {"quantization_config": 5}, "its weights are quantized, and"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}, r"its weights are quantized \(NVFP4\)"),
    ],
    ids=["fp8", "nested", "no object", "modelopt"],
)
def test_dummy_weights_of_a_quantized_model_are_refused(
    tmp_path: Path, file: str, numbers: dict[str, Any], said: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    load(tmp_path)
    (tmp_path / file).write_text(json.dumps((LLAMA if file == "config.json" else {}) | numbers))
    with pytest.raises(UserError, match=said):
        load(tmp_path)


@pytest.mark.parametrize(
    "numbers",
    [
        {"model_type": "llama", "num_hidden_layers": 1 << 31},
        {"model_type": "gpt2", "n_layer": 10**9},
        {"model_type": "llama4", "text_config": {"num_local_experts": 10**9}},
    ],
    ids=str,
)
@pytest.mark.parametrize("load_format", ["dummy", "auto"])
def test_number_of_modules_without_end_is_told_at_once(
    tmp_path: Path, load_format: str, numbers: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    with pytest.raises(UserError, match=r"(layers|layer|experts) \d+: at most 10000 are built"):
        load(tmp_path, load_format)


@pytest.mark.parametrize(
    ("numbers", "positions"),
    [
        ({"model_type": "llama", "max_position_embeddings": 77}, 77),
        ({"model_type": "llama", "max_position_embeddings": -1}, 1 << 20),
        ({"model_type": "llama", "max_position_embeddings": 0}, 1 << 20),
        ({"model_type": "mpt", "d_model": 64, "n_layers": 1, "n_heads": 4, "max_seq_len": 32}, 32),
        ({"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 33}, 33),
        ({"model_type": "bloom", "hidden_size": 64, "n_layer": 1, "n_head": 4}, 1 << 20),
    ],
    ids=str,
)
def test_positions_of_a_model_are_found_by_any_of_their_names(
    tmp_path: Path, numbers: dict[str, Any], positions: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps((SMALL if numbers["model_type"] == "llama" else {}) | numbers))
    loaded = load_model(str(tmp_path), load_format="dummy", dtype="float32", device=CPU, seed=0)
    assert loaded.max_positions == positions


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_configuration_that_asks_for_tuples_is_measured(tmp_path: Path, model_type: str) -> None:
    numbers = LLAMA if model_type == "llama" else {"n_embd": 64, "n_layer": 1, "n_head": 4, "vocab_size": 500}
    (tmp_path / "config.json").write_text(json.dumps(numbers | {"model_type": model_type, "return_dict": False}))
    ids = torch.arange(5)[None]
    assert load(tmp_path)(ids).logits.shape == (1, 5, 500)


def test_configuration_without_tied_embeddings_in_it_is_loaded(tmp_path: Path) -> None:
    """Some configuration classes do not have the number at all."""
    numbers = SMALL | {"model_type": "inkling_text", "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    load(tmp_path)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "no code of a model's is ever run"),
        ({"model_type": "unheard_of"}, "knows no architecture of its model_type"),
        ({"model_type": "vit"}, "it is no causal language model"),
    ],
    ids=["remote code", "unknown", "no language model"],
)
def test_what_libraries_advise_is_told_in_our_words(tmp_path: Path, numbers: dict[str, Any], said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    (tmp_path / "own.py").write_text("raise SystemExit('this code must not run')")
    with pytest.raises(UserError, match=said) as error:
        load(tmp_path, "auto")
    assert "trust_remote_code" not in str(error.value) and "pip install" not in str(error.value)


def test_control_characters_of_a_file_do_not_reach_the_terminal(weights: Path, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[31m\n"
    directory = damaged(weights, tmp_path, "config.json", LLAMA | {"quantization_config": {"quant_method": evil}})
    protocol = ["--prompt-lengths", "3", "--ttft-iterations", "1", "--p99-iterations", "0", "--output-dir", "out"]
    command = [sys.executable, str(ROOT / "case1_baseline.py"), "--model", str(directory), "--load-format", "auto"]
    run = subprocess.run([*command, *protocol], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "owned" in run.stderr, "transformers warns that it knows no such quantization"
    assert "\x1b" not in run.stderr and "\x07" not in run.stderr


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load(tmp_path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a model with real weights."""
    directory = tmp_path_factory.mktemp("weights")
    (directory / "config.json").write_text(json.dumps(LLAMA))
    load(directory).save_pretrained(directory)  # type: ignore[operator]
    return directory


def damaged(weights: Path, directory: Path, file: str, content: Any) -> Path:
    """A copy of ``weights`` with other content of one file."""
    for path in weights.iterdir():
        (directory / path.name).symlink_to(path)
    (directory / file).unlink(missing_ok=True)
    (directory / file).write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize(
    "numbers",
    [
        {"hidden_size": "128"},
        {"num_hidden_layers": None},
        {"vocab_size": 1.5},
        {"architectures": 5},
        {"bos_token_id": "x"},
        {"rope_parameters": {"rope_type": "foo", "rope_theta": 1e4}},
        {"rope_scaling": {"rope_type": "linear"}},
        {"hidden_act": "nope"},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"vocab_size": 0},
        {"pad_token_id": 500},
        {"auto_map": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("load_format", ["dummy", "auto"])
def test_a_faulty_configuration(weights: Path, tmp_path: Path, load_format: str, numbers: dict[str, Any]) -> None:
    damaged(weights, tmp_path, "config.json", LLAMA | numbers)
    with pytest.raises(UserError) as error:
        load(tmp_path, load_format)
    assert str(tmp_path) in str(error.value) or "this config.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("load_format", ["dummy", "auto"])
def test_heads_that_do_not_share_keys_and_values_evenly(tmp_path: Path, load_format: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**(LLAMA | {"num_key_value_heads": 3}))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="num_attention_heads 4 is no multiple of num_key_value_heads 3"):
        load(tmp_path, load_format)


@pytest.mark.parametrize("value", ["x", ["x"], [2, None], {}, True, 1.5, 10**30])
def test_what_is_no_id_is_no_special_id(weights: Path, tmp_path: Path, value: Any) -> None:
    damaged(weights, tmp_path, "generation_config.json", {"eos_token_id": value})
    assert load_model(str(tmp_path), load_format="auto", dtype="float32", device=CPU, seed=0).special_ids == (1, 2)


@pytest.mark.parametrize("content", [[], 5, {"cache_implementation": "nope"}], ids=str)
def test_a_faulty_generation_configuration(weights: Path, tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        load(damaged(weights, tmp_path, "generation_config.json", content), "auto")


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_real_weights_go_to_one_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    asked: dict[str, Any] = {}

    def refuse(location: str, **arguments: Any) -> None:
        asked.update(arguments)
        raise OSError("this test loads nothing")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(UserError, match="this test loads nothing"):
        load_model(str(tmp_path), load_format="auto", dtype="float32", device=torch.device(device), seed=0)
    assert asked["device_map"] == {"": torch.device(device)}


def test_a_model_says_what_its_device_is_called() -> None:
    loaded = load_model("tiny-llama", load_format="dummy", dtype="float32", device=CPU, seed=0)
    assert loaded.info().device == device_name(CPU) != "cpu"


def test_a_host_without_the_memory() -> None:
    with pytest.raises(UserError, match="this machine has too little memory"), oom_as_user_error(CPU):
        torch.empty(1 << 50)
    with pytest.raises(RuntimeError, match="something else"), oom_as_user_error(CPU):
        raise RuntimeError("something else")


@pytest.mark.parametrize("device", ["meta", "mps", "nowhere", "cuda:x"])
def test_a_device_that_no_model_is_run_on(device: str) -> None:
    with pytest.raises(UserError, match="one of cpu, cuda, cuda:N"):
        device_called(device)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown model 'no/such'"):
        load("no/such")


@pytest.mark.parametrize("name", ["missing", "missing/model.gguf", "empty/model.gguf", "empty/directory.gguf"])
def test_no_hub_is_asked_for_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "empty/directory.gguf").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for path in (name, f"./{name}", str(tmp_path / name), f"~/{name}"):
        with pytest.raises(UserError, match=f"model '{path}' is not there"):
            location_of(path)


def test_a_hub_id_may_name_a_file() -> None:
    assert location_of("owner/name-1.5") == ("owner/name-1.5", {})
    assert location_of("owner/name/model.Q8_0.gguf") == ("owner/name", {"gguf_file": "model.Q8_0.gguf"})


def test_weights_that_could_run_code_are_not_read(tmp_path: Path) -> None:
    model = load("tiny-llama")
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))  # type: ignore[union-attr,operator]
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="it has no weights as safetensors") as error:
        load(tmp_path, "auto")
    assert "use_safetensors" not in str(error.value)
