"""What only a GPU can say; skipped where there is none. `python -m benchmarks.gpu_first` measures the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.gpu_ready.test_graphs import CASES, run
from tests.support.generate_alone import agrees, generate_alone
from tests.support.paged_steps import mixed_step
from workers.engine.config import EngineConfig
from workers.engine.hf.model_inputs import QwenInputs
from workers.engine.load import load_engine, load_qwen_processor
from workers.engine.model import load_model
from workers.engine.runner.paged import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no usable CUDA device: nothing here is measured"),
]


def test_the_engine_writes_what_generate_writes_and_replays_every_decoding_step(
    model_folder: Callable[..., Path],
) -> None:
    config = EngineConfig(model=str(model_folder()), device="cuda", dtype="float32", batch_size=16)
    pairs = CASES["several images"]
    model = load_model(config)
    inputs = QwenInputs(load_qwen_processor(config, model.config.image_token_id), model)
    references = [generate_alone(model, inputs, one) for pair in pairs for one in pair]
    engine = load_engine(config)
    futures = [future for pair in pairs for future in engine.submit(pair)]
    for future, reference in zip(futures, references, strict=True):
        assert agrees(future.result(300), reference, inputs)
    stats = engine.stats()
    engine.close()
    assert stats["refused_captures"] == 0
    assert stats["replayed"] > 0


def test_a_closed_engine_gives_its_memory_back(model_folder: Callable[..., Path]) -> None:
    config = EngineConfig(model=str(model_folder()), device="cuda", batch_size=16)
    engine = load_engine(config)
    run(engine, CASES["one pair"])  # type: ignore[arg-type]
    during = torch.cuda.memory_allocated()
    engine.close()
    assert torch.cuda.memory_allocated() < during / 2


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_attention_equals_every_row_by_itself(dtype: torch.dtype, error: float) -> None:
    step = mixed_step(heads=(32, 8, 128), dtype=dtype)
    tasks = step.tasks
    tensors = [each.cuda() for each in (step.query, step.keys, step.values)]
    rest = [each.cuda() for each in (tasks.blocks, tasks.own_length, tasks.present)]
    out = ops.attention(*tensors, [each.cuda() for each in step.lists], *rest, 0.088)  # type: ignore[call-arg, arg-type]
    torch.testing.assert_close(out.cpu().double(), step.exact(0.088), atol=error, rtol=error)
