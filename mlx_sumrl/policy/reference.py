"""What full training measures its KL from, in 4 or 8 bits a weight where a second whole copy is too much.

Adapters need none of this: their reference is the model with them off. With ``beta`` 0 there is no reference.

A policy is not equal to its own reference in few bits, so the KL does not begin at 0. Measured on the 4.8 M-parameter
summariser, 48 DialogSum dialogues and about 7,300 tokens of its own samples, mean k3 KL in nats a token:

====  ================  ================  ========================
bits  float32 policy    bfloat16 policy   bits a bfloat16 weight
====  ================  ================  ========================
4     0.022             0.022             4.5
8     0.00008           0.0003            8.5
====  ================  ================  ========================

So 8 bits are as good as the copy; 4 bits pull, with weight beta, towards a model a little worse than the policy's
start (single tokens differ by up to 1.5 nats).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_sumrl.policy.exponential import on_cpu
from mlx_sumrl.policy.mlx_internals import named_arrays

GROUP_SIZE = 64
"""Weights that share a scale and a bias; MLX's default."""
QUANTIZABLE = (nn.Linear, nn.Embedding)


def multiplies_packed() -> bool:
    """Whether products are done by MLX's kernels for packed matrices: everywhere but on the CPU.

    There they are 8 times slower than unpacking a matrix and multiplying by it, 17 times in bfloat16, in which
    they also add up: results are 3 % off. Unpacked matrices of several layers live at once, though.
    """
    return not on_cpu()


class QuantizedLinear(nn.QuantizedLinear):  # type: ignore[misc]
    """MLX's, with a product that the CPU is good at."""

    def __call__(self, x: mx.array) -> mx.array:
        """[..., inputs] -> [..., outputs]."""
        if multiplies_packed():
            product: mx.array = super().__call__(x)
            return product
        matrix = _unpacked(self)
        return mx.addmm(self.bias, x, matrix.T) if "bias" in self else x @ matrix.T


class QuantizedEmbedding(nn.QuantizedEmbedding):  # type: ignore[misc]
    """The same for an embedding, and for a head tied to it."""

    def as_linear(self, x: mx.array) -> mx.array:
        """Logits [..., V] of hidden states [..., D]."""
        logits: mx.array = super().as_linear(x) if multiplies_packed() else x @ _unpacked(self).T
        return logits


def _unpacked(layer: Any) -> mx.array:
    """The matrix [outputs, inputs] that a quantised layer stands for, in the type of its scales."""
    return mx.dequantize(
        layer.weight, layer.scales, layer.biases, group_size=layer.group_size, bits=layer.bits
    )


@dataclass(frozen=True)
class QuantizedReference:
    """The policy as it once was: matrices and embeddings quantised, all other trainable weights copied.

    A matrix whose rows (inputs) are not whole groups of `GROUP_SIZE` is copied, too.
    """

    modules: dict[str, nn.Module]
    """Quantised linear layers and embeddings by their path in the model."""
    others: dict[str, mx.array]
    """Weights outside of them (norms, convolutions) by name."""

    @classmethod
    def of(cls, model: nn.Module, bits: int) -> Self:
        """The model as it is now, in ``bits`` (4 or 8) a weight.

        Made and evaluated layer by layer: beside the model and what is returned, one layer's temporaries live.
        """
        modules = {}
        for path, module in model.named_modules():
            if _quantizable(module):
                quantized = _quantized(module, bits)
                if "bias" in quantized:
                    quantized.bias = mx.array(module.bias)  # it is the policy's own otherwise
                mx.eval(quantized.parameters())
                modules[path] = quantized
        others = {name: mx.array(array) for name, array in _outside(model, modules).items()}
        mx.eval(others)
        return cls(modules, others)

    @classmethod
    def from_arrays(cls, model: nn.Module, arrays: dict[str, mx.array]) -> Self:
        """The reference of ``model`` that `arrays` was called on. Raises ValueError for another model's."""
        modules = {}
        for path, module in model.named_modules():
            if _quantizable(module) and f"{path}.scales" in arrays:
                own = {
                    name.removeprefix(f"{path}."): array
                    for name, array in arrays.items()
                    if name.rpartition(".")[0] == path
                }
                modules[path] = _filled(module, path, own)
        others = {name: array for name, array in arrays.items() if name.rpartition(".")[0] not in modules}
        expected = _outside(model, modules)
        if odd := sorted(others.keys() ^ expected.keys()):
            raise ValueError(
                f"the reference has other weights: {len(odd)} names differ, the first is {odd[0]}"
            )
        for name, array in others.items():
            _check_shape(name, array, expected[name])
        return cls(modules, others)

    def arrays(self) -> dict[str, mx.array]:
        """All of it by name, for a checkpoint: ``PATH.weight`` (uint32, packed), ``.scales``, ``.biases``, ..."""
        quantized = {
            f"{path}.{name}": array
            for path, module in self.modules.items()
            for name, array in named_arrays(module.parameters()).items()
        }
        return quantized | self.others

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Inside, ``model`` computes what the reference does; its own modules are put aside as they are."""
        modules = [(path, module) for path, module in model.named_modules() if path in self.modules]
        others = list(_outside(model, self.modules).items())
        try:
            model.update_modules(tree_unflatten(list(self.modules.items())))
            model.update(tree_unflatten(list(self.others.items())))
            yield
        finally:
            model.update_modules(tree_unflatten(modules))
            model.update(tree_unflatten(others))


def restored_reference(
    model: nn.Module, arrays: dict[str, mx.array]
) -> dict[str, mx.array] | QuantizedReference:
    """A reference from what a checkpoint holds: weights as they are, or quantised ones as modules.

    Raises ValueError for quantised ones that do not fit the model.
    """
    scales = (name.removesuffix(".scales") for name in arrays if name.endswith(".scales"))
    modules = dict(model.named_modules())
    if any(isinstance(modules.get(path), QUANTIZABLE) for path in scales):
        return QuantizedReference.from_arrays(model, arrays)
    return arrays


def _quantizable(module: Any) -> bool:
    return isinstance(module, QUANTIZABLE) and module.weight.shape[-1] % GROUP_SIZE == 0


def _quantized(module: Any, bits: int) -> Any:
    """A linear layer or embedding in ``bits``, as MLX's own quantisation rounds it; lazy, its bias shared."""
    if isinstance(module, nn.Linear):
        return QuantizedLinear.from_linear(module, GROUP_SIZE, bits)
    return QuantizedEmbedding.from_embedding(module, GROUP_SIZE, bits)


def _outside(model: nn.Module, modules: dict[str, nn.Module]) -> dict[str, mx.array]:
    """Trainable weights of the model that belong to none of ``modules``."""
    weights = named_arrays(model.trainable_parameters())
    return {name: array for name, array in weights.items() if name.rpartition(".")[0] not in modules}


def _filled(module: Any, path: str, arrays: dict[str, mx.array]) -> Any:
    """A quantised layer in the place of ``module`` with these arrays; what they replace is never computed."""
    packed, scales = arrays["weight"], arrays["scales"]
    bits = 32 * packed.shape[-1] // (GROUP_SIZE * scales.shape[-1])
    quantized = _quantized(module, bits)
    expected = named_arrays(quantized.parameters())
    if arrays.keys() != expected.keys():
        raise ValueError(f"the reference has other weights in {path}: {', '.join(sorted(arrays))}")
    for name, array in arrays.items():
        _check_shape(f"{path}.{name}", array, expected[name])
    quantized.update(arrays)
    return quantized


def _check_shape(name: str, array: mx.array, expected: mx.array) -> None:
    if array.shape != expected.shape:
        raise ValueError(f"the reference's {name} is {array.shape}, not {expected.shape}")
