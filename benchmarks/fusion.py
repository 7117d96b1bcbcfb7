"""Batch norm folded into the convolution before it, for evaluation.

In evaluation a batch norm is an affine map of each channel, gamma (x - mean) / sqrt(var + eps) + beta, and a
convolution before it is linear, so both together are one convolution with other weights and a bias (Jacob et al. 2018,
arXiv 1712.05877, section 3.2). That saves a pass over the activations for each pair.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.core.errors import ImpossibleRunError


def foldable_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of each convolution and the batch norm that it alone feeds, and which has no other use, in their order.

    They are found in the graph of one forward pass, not by the order of the modules, which says nothing of the data's
    way. A batch norm without running averages is left alone: it has nothing to fold.

    Raises:
        ImpossibleRunError: the model's forward pass depends on data, or there is no such pair.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ImpossibleRunError(f"fuse_for_evaluation=True: the model cannot be traced ({reason})") from error
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")

    def once(node: fx.Node, kind: type[nn.Module]) -> bool:
        found = modules.get(str(node.target)) if node.op == "call_module" else None
        return isinstance(found, kind) and calls[id(found)] == 1

    pairs = []
    for node in graph.nodes:
        before = node.args[0] if node.args else None
        if once(node, _BatchNorm) and isinstance(before, fx.Node) and once(before, _ConvNd):
            convolution, norm = modules[str(before.target)], modules[str(node.target)]
            if len(before.users) == 1 and _can_fold(convolution, norm):
                pairs.append((str(before.target), str(node.target)))
    if not pairs:
        raise ImpossibleRunError("fuse_for_evaluation=True: the model has no convolution that a batch norm follows")
    return pairs


def _can_fold(convolution: nn.Module, norm: nn.Module) -> bool:
    # A transposed convolution has its output channels elsewhere in its weight.
    return norm.running_mean is not None and not convolution.transposed


@torch.no_grad()
def folded(model: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    """A twin of the model for evaluation, each of the pairs in it one convolution; the model stays as it is.

    Folded weights are new, in the old ones' memory format. All other tensors are the model's own, not copies: an
    evaluation only reads them.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared).eval()
    for convolution_name, norm_name in pairs:
        convolution, norm = twin.get_submodule(convolution_name), twin.get_submodule(norm_name)
        assert isinstance(convolution, _ConvNd)
        assert isinstance(norm, _BatchNorm)
        twin.set_submodule(convolution_name, fuse_conv_bn_eval(convolution, norm))
        twin.set_submodule(norm_name, nn.Identity())
    return twin
