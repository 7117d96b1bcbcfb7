"""Natural gradient descent: its factors by their definition, its steps against the exact natural gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.core.config import RunConfig, Variant
from benchmarks.core.errors import ImpossibleRunError
from benchmarks.core.variants import variant_file
from benchmarks.data import load
from benchmarks.data.batches import Batch, Division
from benchmarks.optimizer import TakeStep, optimizers
from benchmarks.optimizer.fisher import FISHERS, Vectors, sampled
from benchmarks.optimizer.kronecker import KroneckerLayer, damped_inverses, input_moment, is_kronecker, output_moment
from benchmarks.optimizer.ngd import Curvature, NaturalGradient
from benchmarks.restore import Snapshot
from benchmarks.strategy import Place, strategies
from benchmarks.trainer import Trainer
from tests.conftest import MakeRun, base_mapping
from tests.crew import CPU, Case, Crews, Outcome, take, take_together
from tests.test_strategies import largest_difference

ALONE = Division(0, 1)


def watched(
    model: nn.Module, step: TakeStep, *, vectors: Vectors = FISHERS["exact"], lr: float = 1.0, momentum: float = 0.0,
    weight_decay: float = 0.0, **curvature: float,
) -> tuple[NaturalGradient, TakeStep]:  # fmt: skip
    settings: dict[str, Any] = {"damping": 0.1, "decay": 0.95, "interval": 1, "kl_clip": 0.0} | curvature
    optimizer = NaturalGradient(
        model.parameters(),
        Curvature(vectors=vectors, **settings),
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    replicas = SimpleNamespace(division=ALONE, summed_bytes_per_step=0.0, sum_over_replicas=lambda _tensors: None)
    return optimizer, optimizer.watch(model, step, replicas)


def backward_of(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> TakeStep:
    """Gradients alone."""

    def step(batch: Batch) -> Tensor:
        model.zero_grad()
        value = loss(model(batch.inputs), batch.targets)
        value.backward()
        return value.detach()

    return step


def moments_of(optimizer: NaturalGradient) -> dict[Tensor, tuple[Tensor, Tensor]]:
    """Of the forward pass that has been; none that follows counts."""
    optimizer.moments.end()
    return dict(optimizer.moments.found.items())


def of_squares(outputs: Tensor, _uniform: Tensor) -> Iterator[Tensor]:
    """Half the squared error has the identity for its Fisher matrix, as that of a normal distribution."""
    for number in range(outputs.shape[-1]):
        yield functional.one_hot(torch.tensor(number), outputs.shape[-1]).float().expand_as(outputs)


def test_one_step_solves_least_squares() -> None:
    """A linear layer's Fisher matrix, E[a a^T] x 1, is one Kronecker product: without damping K-FAC is Newton's method.

    From any start, one step of length 1 is at the solution of the normal equations.
    """
    torch.manual_seed(0)
    inputs, targets = torch.randn(40, 5), torch.randn(40, 3)
    model = nn.Linear(5, 3)
    optimizer, step = watched(
        model, backward_of(model, lambda y, t: (y - t).square().sum() / 2 / len(t)), vectors=of_squares, damping=0.0
    )
    step(Batch(inputs, targets, 1.0))
    optimizer.step()
    wide = torch.cat([inputs, torch.ones(40, 1)], 1)
    solution = torch.linalg.lstsq(wide, targets).solution
    found = torch.cat([model.weight, model.bias.unsqueeze(1)], 1).T.detach()
    assert float((found - solution).abs().max()) < 1e-4


def test_damping_makes_it_ridge_like_gradient_descent_in_the_limit() -> None:
    """For a damping far above all eigenvalues, the natural gradient is the gradient over it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer, step = watched(model, backward_of(model, functional.cross_entropy), damping=1e6)
    batch = Batch(torch.randn(9, 6), torch.arange(9) % 3, 1.0)
    step(batch)
    before = [(value.detach().clone(), value.grad.clone()) for value in model.parameters() if value.grad is not None]
    optimizer.step()
    for (old, gradient), new in zip(before, model.parameters(), strict=True):
        assert torch.allclose((old - new.detach()) * 1e6, gradient, rtol=0.05, atol=0.05)


def small_models() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return {
        "mlp": nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 5, bias=False), nn.Tanh(), nn.Linear(5, 4)),
        # one place of output each, so that nothing is taken for uncorrelated
        "convolution": nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3, 4)),
        "channels_last": nn.Sequential(nn.Conv2d(2, 3, 2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(3, 4)).to(
            memory_format=torch.channels_last
        ),
    }


def a_sample(name: str) -> Tensor:
    shape = (1, 4) if name == "mlp" else (1, 2, 2, 2)
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def fisher_block(model: nn.Module, inputs: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Sum over classes of p(y) grad log p(y) grad log p(y)^T, for one sample; a bias is its weight's last column."""
    log_chances = model(inputs).log_softmax(-1).squeeze(0)
    block = torch.zeros(())
    for log_chance in log_chances:
        gradients = torch.autograd.grad(log_chance, parameters, retain_graph=True)
        flat = torch.cat([gradient.reshape(len(gradient), -1) for gradient in gradients], 1).flatten()
        block = block + log_chance.detach().exp() * torch.outer(flat, flat)
    return block


def layers(model: nn.Module) -> list[tuple[KroneckerLayer, list[Tensor]]]:
    return [
        (module, [value for value in (module.weight, module.bias) if value is not None])
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]


@pytest.mark.parametrize("name", ["mlp", "convolution", "channels_last"])
def test_factors_are_the_exact_fisher_matrix_of_a_sample(name: str) -> None:
    """For one sample, a layer's block is a a^T x E[g g^T] without any approximation."""
    model, inputs = small_models()[name], a_sample(name)
    optimizer, step = watched(model, backward_of(model, functional.cross_entropy))
    step(Batch(inputs, torch.tensor([1]), 1.0))
    found = moments_of(optimizer)
    assert len(layers(model)) == len(found) > 1
    for layer, parameters in layers(model):
        inputs_factor, outputs_factor = found[layer.weight]
        wanted = fisher_block(model, inputs, parameters)
        assert float(wanted.abs().max()) > 1e-3
        assert torch.allclose(torch.kron(outputs_factor, inputs_factor), wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "convolution", "channels_last"])
def test_a_step_solves_the_damped_system(name: str) -> None:
    """(G + sqrt(damping) / pi) x (A + sqrt(damping) pi) applied to the step is the gradient; lr 0.5."""
    model, inputs = small_models()[name], a_sample(name)
    optimizer, step = watched(model, backward_of(model, functional.cross_entropy), lr=0.5, damping=0.01)
    step(Batch(inputs, torch.tensor([1]), 1.0))
    found = moments_of(optimizer)

    def flat(tensors: Sequence[Tensor | None]) -> Tensor:
        wide = [value.detach().reshape(len(value), -1) for value in tensors if value is not None]
        return torch.cat(wide, 1).flatten().clone()

    before = {layer: (flat(own), flat([value.grad for value in own])) for layer, own in layers(model)}
    optimizer.step()
    for layer, own in layers(model):
        a, g = found[layer.weight]
        pi = ((a.trace() / len(a)) / (g.trace() / len(g))).sqrt()
        damped = torch.kron(g + 0.1 / pi * torch.eye(len(g)), a + 0.1 * pi * torch.eye(len(a)))
        start, gradient = before[layer]
        assert torch.allclose(damped @ ((start - flat(own)) / 0.5), gradient, atol=1e-5)
        assert float(gradient.abs().max()) > 1e-3


def test_a_factor_without_an_inverse_fails_the_run_and_asks_the_device_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All numbers are NaN where there is none, and nobody has read a value on the host to find out."""
    for name in ("item", "__bool__", "tolist", "__float__"):
        monkeypatch.setattr(Tensor, name, lambda *_, name=name: pytest.fail(f"Tensor.{name}"))
    singular, sound = torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([2.0, 4.0]))
    inverses = damped_inverses(singular, sound, 0.0)
    monkeypatch.undo()
    assert inverses[0].isnan().all()
    assert torch.allclose(inverses[1], torch.diag(torch.tensor([0.5, 0.25])))


CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 2), "bias": False},
    {"kernel_size": 2, "dilation": 2},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_convolutions_moments_by_their_sums(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Over samples and places; the input moment is also what the weights' gradients are made of: sum of g a^T."""
    monkeypatch.setattr("benchmarks.optimizer.kronecker._CHUNK_NUMBERS", 200)  # in several parts
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, **options)
    inputs = torch.randn(5, 2, 6, 7)
    outputs = layer(inputs)
    gradients = torch.randn_like(outputs)
    assert not isinstance(layer.padding, str)
    padded = functional.pad(inputs, [size for size in layer.padding[::-1] for _ in range(2)])
    (down, right), (rows, columns) = layer.dilation, layer.kernel_size
    size = 2 * rows * columns + (layer.bias is not None)
    wanted, of_outputs, weights = torch.zeros(size, size), torch.zeros(3, 3), torch.zeros(3, size)
    for sample, y, x in itertools.product(range(5), range(outputs.shape[2]), range(outputs.shape[3])):
        top, left = y * layer.stride[0], x * layer.stride[1]
        patch = padded[sample, :, top : top + down * rows : down, left : left + right * columns : right].flatten()
        a = torch.cat([patch, torch.ones(1)]) if layer.bias is not None else patch
        g = gradients[sample, :, y, x]
        wanted += torch.outer(a, a)
        of_outputs += torch.outer(g, g)
        weights += torch.outer(g, a)
    assert torch.allclose(input_moment(layer, inputs), wanted, atol=1e-3)
    assert torch.allclose(output_moment(layer, gradients), of_outputs, atol=1e-3)
    outputs.backward(gradients)
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad.flatten(1), weights[:, : 2 * rows * columns], atol=1e-3)


def test_factors_of_a_batch_by_their_formulas() -> None:
    """A is a sum over places, G a mean over them; both are means over samples. With tokens, each is a prediction."""
    torch.manual_seed(0)
    convolution, head = nn.Conv2d(1, 2, 3), nn.Linear(2, 3)

    class Tokens(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return values.flatten(2).transpose(1, 2)

    model = nn.Sequential(convolution, Tokens(), head)
    optimizer, step = watched(
        model, backward_of(model, lambda y, t: functional.cross_entropy(y.flatten(0, 1), t.flatten()))
    )
    inputs = torch.randn(6, 1, 4, 5)  # 2 x 3 places
    step(Batch(inputs, torch.zeros(6, 6, dtype=torch.int64), 1.0))
    found = moments_of(optimizer)
    logits = model(inputs)
    hidden = convolution(inputs).permute(0, 2, 3, 1).reshape(36, 2)
    chances = logits.softmax(-1).reshape(36, 3)
    curvature = torch.diag_embed(chances) - chances.unsqueeze(2) * chances.unsqueeze(1)
    wide = torch.cat([hidden, torch.ones(36, 1)], 1)
    a, g = found[head.weight]
    assert torch.allclose(a, wide.T @ wide / 6, atol=1e-5)
    assert torch.allclose(g, curvature.mean(0) / 6, atol=1e-6)
    a, g = found[convolution.weight]
    below = torch.einsum("co,ncd,de->noe", head.weight, curvature, head.weight)
    assert torch.allclose(g, below.mean(0) / 6, atol=1e-6)
    assert torch.allclose(a, input_moment(convolution, inputs) / 6, atol=1e-4)


def test_drawn_classes_have_the_models_own_chances() -> None:
    chances = torch.tensor([0.5, 0.0, 0.2, 0.3])
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    [vectors] = sampled(chances.log().expand(20_000, 4), uniform)
    drawn = (vectors < -1e-6).float().mean(0)
    assert drawn.tolist() == pytest.approx(chances.tolist(), abs=0.015)
    assert torch.allclose(vectors.sum(-1), torch.zeros(20_000), atol=1e-6)
    [last] = sampled(torch.zeros(1, 4), torch.tensor([1.0]))  # rounding may leave the sum of chances below it
    assert last.tolist() == [[0.25, 0.25, 0.25, -0.75]]


def test_samples_estimate_the_exact_factor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4))
    batch = Batch(torch.randn(4000, 4), torch.zeros(4000, dtype=torch.int64), 1.0)
    factors = []
    for vectors in (FISHERS["sampled"], FISHERS["exact"]):
        optimizer, step = watched(model, backward_of(model, functional.cross_entropy), vectors=vectors)
        step(batch)
        factors.append(moments_of(optimizer)[model.get_parameter("0.weight")][1])
    assert float((factors[0] - factors[1]).norm() / factors[1].norm()) == pytest.approx(0.0, abs=0.1)
    assert not torch.equal(factors[0], factors[1])


def test_running_means_and_when_they_are_renewed() -> None:
    """With interval 3: at the steps 0, 1, 2, then 3, 6, 9; the mean of k renewals until 1 - 1/k reaches `decay`."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    optimizer, step = watched(model, backward_of(model, functional.cross_entropy), interval=3, decay=0.7, lr=0.1)
    mean, renewed, kept = torch.zeros(3, 3), [], []
    for number in range(10):
        inputs = torch.randn(8, 3)
        step(Batch(inputs, torch.arange(8) % 2, 1.0))
        moment = moments_of(optimizer).get(model.weight)
        optimizer.step()
        if moment:
            renewed.append(number)
            kept.append(min(1 - 1 / len(renewed), 0.7))
            mean = kept[-1] * mean + (1 - kept[-1]) * inputs.T @ inputs / 8
        assert torch.allclose(optimizer.state[model.weight]["inputs"], mean, atol=1e-5)
    assert renewed == [0, 1, 2, 3, 6, 9]
    assert kept == pytest.approx([0.0, 1 / 2, 2 / 3, 0.7, 0.7, 0.7])


def test_a_long_step_is_shortened_to_the_bound() -> None:
    """lr^2 d^T F d, which the damped F makes at most, is the bound; a step within it stays as it is."""
    for bound, shortened in ((1e-4, True), (1e4, False)):
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        optimizer, step = watched(model, backward_of(model, functional.cross_entropy), lr=0.3, kl_clip=bound)
        step(Batch(torch.randn(20, 5), torch.arange(20) % 3, 1.0))
        gradients = [value.grad.clone() for value in model.parameters() if value.grad is not None]
        before = [value.detach().clone() for value in model.parameters()]
        a, g = moments_of(optimizer)[model.weight]
        optimizer.step()
        moves = [old - new.detach() for old, new in zip(before, model.parameters(), strict=True)]
        flat, slope = (torch.cat([x[0], x[1].unsqueeze(1)], 1) for x in (moves, gradients))
        inverses = damped_inverses(a, g, 0.1)
        whole = 0.3 * inverses[1] @ slope @ inverses[0]
        square = float((whole * slope).sum() * 0.3)
        assert torch.allclose(flat, whole * min(1.0, (bound / square) ** 0.5), atol=1e-6)
        assert (square > bound) is shortened


def test_all_else_takes_the_steps_of_sgd() -> None:
    """A norm's weights, a grouped convolution and a vocabulary too large to invert; with weight decay."""
    torch.manual_seed(0)

    def make() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 8200), nn.Linear(8200, 3)
        )

    model, plain = make(), make()
    assert [is_kronecker(module) for module in model] == [False, False, False, True, True]
    optimizer, step = watched(
        model, backward_of(model, functional.cross_entropy), lr=0.01, momentum=0.9, weight_decay=0.1
    )
    assert not optimizer.layers
    sgd = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        batch = Batch(torch.randn(6, 2, 4, 4), torch.arange(6) % 3, 1.0)
        step(batch)
        optimizer.step()
        backward_of(plain, functional.cross_entropy)(batch)
        sgd.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_an_activation_in_place_does_not_hide_the_outputs_gradient() -> None:
    found = []
    for in_place in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=in_place), nn.Flatten(), nn.Linear(12, 4))
        optimizer, step = watched(model, backward_of(model, functional.cross_entropy))
        step(Batch(torch.randn(5, 1, 4, 4), torch.arange(5) % 4, 1.0))
        found.append(moments_of(optimizer)[model.get_parameter("0.weight")][1])
    assert torch.equal(found[0], found[1])


def test_only_the_forward_passes_of_steps_count() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer, step = watched(model, backward_of(model, functional.cross_entropy))
    batch = Batch(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), 1.0)
    step(batch)
    optimizer.step()
    model(batch.inputs)
    assert not optimizer.moments.found
    with torch.inference_mode():
        model(batch.inputs)


def make(**settings: Any) -> RunConfig:
    keys = {key.replace(".", "__"): value for key, value in settings.items()}
    defaults = {
        "workload": "lenet",
        "workload__input_size": 16,
        "optimizer": "ngd",
        "optimizer__interval": 3,
        "warmup_steps": 2,
    }
    length = {"global_batch": 284, "steps": None, "epochs": 2}
    return RunConfig.from_mapping(base_mapping(**defaults | length | keys))


def trainer_of(run: RunConfig) -> tuple[Trainer, Any]:
    torch.set_num_threads(1)
    place = Place(rank=0, workers=1, device=CPU)
    size = run.workload.options.get("input_size")
    dataset = load(run.data, size if isinstance(size, int) else None)
    strategy = strategies.make(run.strategy, place)
    loader = strategy.make_loader(dataset.train, global_batch=run.global_batch, seed=run.seed)
    return Trainer(run, place, strategy, dataset), loader


def test_warm_up_leaves_no_trace() -> None:
    """Neither in parameters nor in running means, inverses, momentum and the count of steps."""
    ends = []
    for warmup_steps in (0, 4):
        trainer, loader = trainer_of(make(strategy="single", warmup_steps=warmup_steps, global_batch=64))
        trainer.warm_up(loader)
        for batch, _ in zip(loader.epoch(0), range(5), strict=False):
            trainer.step(batch)
        state = trainer.optimizer.state.values()
        ends.append(
            [value.detach().clone() for value in trainer.bare_model.parameters()]
            + [value.clone() for own in state for value in own.values()]
        )
    assert len(ends[0]) == len(ends[1]) > 40
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_state_survives_a_snapshot() -> None:
    """Put back in the middle of training, the same batches lead to the same parameters again."""
    trainer, loader = trainer_of(make(strategy="single", global_batch=64))
    batches = [batch for batch, _ in zip(loader.epoch(0), range(9), strict=False)]

    def steps(some: list[Batch]) -> list[Tensor]:
        for batch in some:
            trainer.step(batch)
        return [value.detach().clone() for value in trainer.bare_model.parameters()]

    steps(batches[:4])
    middle = Snapshot(trainer.bare_model, trainer.optimizer)
    end = steps(batches[4:])
    middle.restore()
    assert all(torch.equal(a, b) for a, b in zip(steps(batches[4:]), end, strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_short_formats_have_nearly_the_same_factors(precision: str) -> None:
    """Neither the short format's products nor the loss scale of fp16 reach them."""
    factors = []
    for name in ("fp32", precision):
        trainer, loader = trainer_of(make(strategy="single", global_batch=64, precision=name))
        optimizer = trainer.optimizer
        assert isinstance(optimizer, NaturalGradient)
        trainer.step(next(loader.epoch(0)))
        if "inputs" not in optimizer.state[trainer.bare_model.get_parameter("1.0.weight")]:
            trainer.step(next(loader.epoch(0)))
        states = [optimizer.state[weight] for weight in optimizer.layers.values()]
        factors.append([state[name] for state in states for name in ("inputs", "outputs")])
    for wide, short in zip(*factors, strict=True):
        assert float((wide - short).norm() / wide.norm()) < 0.15


def test_moments_are_summed_in_single_precision_under_autocast() -> None:
    """The gradient of the logits is rounded to the short format, as they are; its products are not."""
    torch.manual_seed(0)
    model = nn.Linear(6, 5)
    inputs = torch.randn(64, 6)
    optimizer, step = watched(model, backward_of(model, lambda y, t: functional.cross_entropy(y.float(), t)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step(Batch(inputs, torch.zeros(64, dtype=torch.int64), 1.0))
        a, g = moments_of(optimizer)[model.weight]
        logits = model(inputs).float()
    vectors = [vector.bfloat16().double() for vector in FISHERS["exact"](logits, logits)]
    wanted = sum(vector.T @ vector for vector in vectors) / 64
    assert torch.allclose(g.double(), torch.as_tensor(wanted), rtol=1e-5, atol=1e-7)
    wide = torch.cat([inputs, torch.ones(64, 1)], 1).double()
    assert torch.allclose(a.double(), wide.T @ wide / 64, rtol=1e-5, atol=1e-6)


TOGETHER: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "ddp_accumulate": {"strategy": "ddp", "strategy.accumulate": 3},
    "ddp_static_graph": {"strategy": "ddp", "strategy.static_graph": True},
    "dbs": {"strategy": "dbs"},
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    cases = {name: Case(run=make(workers=2, **settings), steps=7) for name, settings in TOGETHER.items()}
    sent = make(workers=2, strategy="ddp", steps=5, epochs=None, **{"optimizer.interval": 1})
    cases["bytes"] = Case(run=sent, steps=2, count_bytes=True)
    crews = Crews(lambda workers, folder: take_together(cases, workers, folder), tmp_path_factory)
    return lambda name: crews(2)[name]


@pytest.fixture(scope="module")
def alone() -> Callable[[int], Outcome]:
    """One process without warm-up, after so many steps."""

    @cache
    def of(steps: int) -> Outcome:
        return take(Case(run=make(strategy="single", warmup_steps=0), steps=steps), 0)

    return of


@pytest.mark.parametrize("name", TOGETHER)
def test_two_workers_equal_one_with_the_same_global_batch(name: str, outcome: Any, alone: Any) -> None:
    """With a short last batch of 17, shared as 8 and 9, and classes drawn for the curvature."""
    assert largest_difference(outcome(name).parameters, alone(7).parameters) < 1e-5
    assert largest_difference(alone(7).parameters, alone(0).parameters) > 1e-2
    assert all(outcome(name).checks)


def test_the_formula_counts_the_factors_that_are_sent(outcome: Any) -> None:
    result = outcome("bytes")
    counted = result.communication.bytes_per_step
    factors = sum(size**2 for size in (26, 6, 151, 16, 65, 120, 121, 84, 85, 10))
    gradients = 6 * 26 + 16 * 151 + 120 * 65 + 84 * 121 + 10 * 85
    assert counted == 4 * (factors + gradients)
    assert counted <= result.sent_bytes_per_step < 1.02 * counted + 3000


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"strategy": "local_sgd", "workers": 2}, "layers that a worker holds whole"),
    ({"strategy": "hogwild", "workers": 2}, "layers that a worker holds whole"),
    ({"strategy": "pipeline", "workers": 2}, "layers that a worker holds whole"),
    ({"strategy": "parameter_server"}, "layers that a worker holds whole"),
    ({"strategy": "zero1", "workers": 2}, "each number must be updated by itself"),
    ({"strategy": "single", "compile": "default"}, "does not see"),
    ({"strategy": "single", "optimizer.damping": 0.0}, "has no inverse"),
    ({"strategy": "single", "optimizer.fisher": "empirical"}, "these are the estimates there are"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(make_run: MakeRun, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImpossibleRunError, match=reason):
        make_run(optimizer="ngd", **{key.replace(".", "__"): value for key, value in settings.items()})


def test_the_registry_makes_it_of_its_options() -> None:
    model = nn.Linear(2, 2)
    made = optimizers.make(Variant(name="ngd", options=variant_file("optimizer", "ngd").defaults), model.parameters())
    assert isinstance(made, NaturalGradient)
    assert made.curvature.vectors is sampled
