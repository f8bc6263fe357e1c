"""Quantised folders and models over several GPUs: known from the configuration, refused in one line that helps."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from workers.engine.api import CannotServe
from workers.engine.config import EngineConfig
from workers.engine.load import load_engine
from workers.engine.model import model_config, quantization

# As the folders of Qwen's own and of llm-compressor's models have them.
METHODS: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "float-quantized"},
}
HAS_VLLM = importlib.util.find_spec("vllm") is not None


@pytest.fixture
def quantised(tmp_path: Path, model_folder: Callable[..., Path]) -> Callable[[str], Path]:
    """Makes a folder that says to be quantised; its weights are the tiny model's own."""

    def make(method: str) -> Path:
        folder = tmp_path / method
        shutil.copytree(model_folder(), folder)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": METHODS[method]}))
        return folder

    return make


@pytest.mark.parametrize("method", METHODS)
def test_it_is_known_from_the_configuration(quantised: Callable[[str], Path], method: str) -> None:
    assert quantization(model_config(EngineConfig(model=str(quantised(method))))) == method


def test_an_ordinary_folder_is_not_quantised(model_folder: Callable[..., Path]) -> None:
    assert quantization(model_config(EngineConfig(model=str(model_folder())))) is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ["builtin", "transformers"])
def test_engines_that_cannot_read_it_refuse_it_and_name_the_one_that_can(
    quantised: Callable[[str], Path], method: str, engine: str
) -> None:
    with pytest.raises(
        CannotServe, match=f"{method} weights: not for engine {engine}, but for vllm: pip install"
    ) as no:
        load_engine(EngineConfig(model=str(quantised(method)), engine=engine, device="cpu"))
    assert "\n" not in str(no.value)


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed, and takes it")
@pytest.mark.parametrize("engine", ["auto", "vllm"])
def test_without_vllm_the_refusal_says_what_to_install(quantised: Callable[[str], Path], engine: str) -> None:
    with pytest.raises(CannotServe, match=r"fp8 weights needs vLLM: pip install '\.\[vllm\]' -c constraints-vllm\.txt"):
        load_engine(EngineConfig(model=str(quantised("fp8")), engine=engine, device="cpu"))


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed, and takes it")
def test_several_gpus_for_one_model_need_vllm(model_folder: Callable[..., Path]) -> None:
    for engine in ("auto", "vllm"):
        with pytest.raises(CannotServe, match="several GPUs for one model needs vLLM"):
            load_engine(EngineConfig(model=str(model_folder()), engine=engine, gpus=2))
    with pytest.raises(CannotServe, match="not for engine builtin"):
        load_engine(EngineConfig(model=str(model_folder()), engine="builtin", gpus=2))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2 or not HAS_VLLM, reason="not measured: needs two CUDA GPUs and vLLM")
def test_one_model_over_two_gpus_writes(model_folder: Callable[..., Path]) -> None:
    from tests.support.engine_cases import image, request

    engine = load_engine(EngineConfig(model=str(model_folder()), engine="vllm", gpus=2))
    assert engine.submit([request(image(), tokens=8)])[0].result(300).tokens == 8
    engine.close()
