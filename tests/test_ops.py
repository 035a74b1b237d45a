"""The implementations of the dynamic operations are one function each."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hybridgraph.contract import Request
from hybridgraph.engine.buffers import StaticBuffers
from hybridgraph.engine.compilers import require_dynamo_compiles, require_triton_compiles
from hybridgraph.engine.ops.protocol import DynamicOps
from hybridgraph.engine.ops.select import dynamic_ops
from hybridgraph.errors import UserError

ROOT = Path(__file__).resolve().parent.parent

COMPILED = ("torchscript", "inductor")
CPU = torch.device("cpu")


def buffers_of(ops: DynamicOps) -> StaticBuffers:
    return StaticBuffers(ops.open_input(64, CPU), vocab_size=997, dtype=torch.float32, device=CPU)


def _draw(temperature: float) -> torch.Tensor:
    return torch.tensor([temperature, random.random()])


@pytest.mark.parametrize("name", ["native", *COMPILED])
def test_preprocess_copies_pads_and_marks_the_last_id(name: str) -> None:
    ops = dynamic_ops(name)
    for length, room in ((1, 1), (1, 10), (7, 10), (10, 10), (33, 40)):
        staged = torch.randint(0, 1000, (length,))
        static, last = torch.full((room,), -1), torch.full((1,), -1)
        ops.preprocess(staged, static, last)
        assert static.tolist() == staged.tolist() + [0] * (room - length)
        assert last.tolist() == [length - 1]


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_compiled_sampling_equals_native(name: str, dtype: torch.dtype) -> None:
    native, ops = dynamic_ops("native"), dynamic_ops(name)
    for temperature in (0.3, 0.7, 1.5):
        logits, draw = (torch.randn(997) * 4).to(dtype), _draw(temperature)
        cumulative = torch.cumsum(torch.softmax(logits.float() / draw[0], -1), -1)
        a, b = int(native.sample(logits, draw)), int(ops.sample(logits, draw))
        # Sums in another order may round a draw that falls on an id's very edge to its neighbour.
        assert a == b or abs(float(cumulative[min(a, b)] - draw[1])) < 1e-5
        assert int(native.greedy(logits)) == int(ops.greedy(logits))


def test_a_request_never_compiles() -> None:
    """Whatever its length and temperature: what compilers specialize for was run before."""
    ops = dynamic_ops("inductor")
    buffers = buffers_of(ops)
    ops.compile(buffers)
    torch._dynamo.utils.counters.clear()
    for temperature in (0.0, 0.7):
        for num_ids, room in ((1, 1), (1, 2), (1, 7), (2, 2), (2, 64), (5, 8), (64, 64)):
            for new_tokens in (1, 5):
                request = Request(prompt_ids=[1] * num_ids, max_new_tokens=new_tokens, temperature=temperature)
                buffers.input.place(request, room)
                ops.sample_step(request, 0, buffers)
    assert not torch._dynamo.utils.counters["stats"]


@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_the_fused_way_through_the_buffers_ends_where_the_native_one_does(temperature: float) -> None:
    """Also behind a longer request, whose ids and draws are still there."""
    answers = []
    requests = [
        Request(prompt_ids=random.sample(range(997), length), max_new_tokens=8, temperature=temperature, seed=length)
        for length in (40, 7)
    ]
    logits = torch.randn(8, 997) * 4
    for ops in (dynamic_ops("native"), dynamic_ops("fused")):
        buffers = buffers_of(ops)
        answers.append([])
        for request in requests:
            buffers.input.place(request, 48)
            buffers.input.fetch()
            answers[-1] += [buffers.input.ids[:48].tolist(), buffers.input.last.tolist()]
            for step in range(request.max_new_tokens):
                buffers.logits.copy_(logits[step])
                ops.sample_step(request, step, buffers)
                answers[-1] += [buffers.token.tolist(), [buffers.token_at(step)]]
    assert answers[0] == answers[1]


OPENING = """
import torch
from hybridgraph.engine.buffers import StaticBuffers
from hybridgraph.engine.ops.select import dynamic_ops
ops, cpu = dynamic_ops("{name}"), torch.device("cpu")
buffers = StaticBuffers(ops.open_input(8, cpu), vocab_size=16, dtype=torch.float32, device=cpu)
{before}ops.compile(buffers)
"""


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("torchscript", "PYTORCH_JIT", "0"),
        ("inductor", "TORCHDYNAMO_DISABLE", "1"),
        ("inductor", "TORCH_COMPILE_DISABLE", "1"),
        ("inductor", "TORCH_COMPILE_OVERRIDE_BACKENDS", "0-9:eager"),
    ],
)
def test_ops_whose_compiler_the_environment_switches_off_are_refused(name: str, variable: str, value: str) -> None:
    code = OPENING.format(name=name, before="")
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {variable: value}, capture_output=True, text=True, cwd=ROOT
    )
    said = f"UserError: ops {name} would run uncompiled, since the environment has {variable}={value}: unset it"
    assert run.returncode == 1 and run.stderr.splitlines()[-1].endswith(said), run.stderr


def test_ops_whose_compiler_the_program_switches_off_are_refused() -> None:
    code = OPENING.format(name="inductor", before='torch.compiler.set_stance("force_eager")\n')
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stderr.splitlines()[-1].endswith("something in this process has switched their compiler off")


def test_kernels_that_triton_interprets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they would be on a GPU: where there is none, these tests interpret them themselves."""
    if torch.cuda.is_available():
        require_triton_compiles("ops fused")
    else:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        with pytest.raises(UserError, match=r"ops fused would run uncompiled, .* TRITON_INTERPRET=1: unset it"):
            require_triton_compiles("ops fused")


def test_torch_compile_that_is_switched_off_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    require_dynamo_compiles("a peer's decode")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.raises(UserError, match=r"a peer's decode would run uncompiled, .* TORCHDYNAMO_DISABLE=1"):
        require_dynamo_compiles("a peer's decode")


def test_sampling_draws_the_softmax_distribution() -> None:
    ops, temperature = dynamic_ops("native"), 0.7
    logits = torch.randn(12) * 2
    expected = torch.softmax(logits / temperature, -1)
    draws = 4000
    counts = torch.zeros(12)
    for i in range(draws):
        # A uniform grid: the counts are then exact up to one draw an id, with no luck involved.
        counts[int(ops.sample(logits, torch.tensor([temperature, (i + 0.5) / draws])))] += 1
    assert (counts / draws - expected).abs().max() <= 2 / draws


def test_every_draw_finds_an_id() -> None:
    ops = dynamic_ops("native")
    for u in (0.0, 1.0 - 2**-24):
        assert 0 <= int(ops.sample(torch.randn(32000), torch.tensor([0.7, u]))) < 32000


def test_impossible_ids_are_never_drawn() -> None:
    ops, logits = dynamic_ops("native"), torch.tensor([-torch.inf, 0.0, -torch.inf])
    assert {int(ops.sample(logits, torch.tensor([0.7, u]))) for u in (0.0, 0.5, 1.0 - 2**-24)} == {1}
