"""Gradients with respect to the output of the embedding layer, for WDPO. arXiv:2502.01930,
Algorithm 1.

z_i is the embedding output of pair i, of both responses together, and g_i = d l_i / d z_i. The
penalty is rho (E ||g||²)^(1/2), or rho E ||g||². Its gradient, with u_i = g_i / (E ||g||²)^(1/2),
is

    exact               that of the penalty, through g: a double backward;
    finite difference   rho d/de E l(z + e u) at e = 0, as a central difference of plain gradients:
    the same number, since
                        d (E ||g||²)^(1/2) / d theta = E <u, d g / d theta> = d/de E dl(z + e u) / d
                        theta;
    adversarial         the penalty is replaced by E l(z + rho u), the loss at a point of the
    Wasserstein ball of radius rho that
                        agrees with it to first order in rho.
"""

import contextlib
from collections.abc import Iterator

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from llm.logprobs import unwrapped
from llm.objectives import ObjectiveParameters


@contextlib.contextmanager
def embedding_outputs(model: nn.Module, shift: Tensor | None = None) -> Iterator[list[Tensor]]:
    """While open, records each output of the input embeddings, after `shift` of the same shape has
    been added to it."""
    outputs: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        if shift is not None:
            output = output + shift.to(output.dtype)
        elif not output.requires_grad and torch.is_grad_enabled():
            output.requires_grad_()  # frozen embeddings, under LoRA
        outputs.append(output)
        return output

    handle = unwrapped(model).get_input_embeddings().register_forward_hook(hook)
    try:
        yield outputs
    finally:
        handle.remove()


def settled_mode(p: ObjectiveParameters, *, autocast: bool, half: bool) -> str:
    """How a step of WDPO is computed, where --wdpo_mode leaves it open.

    `exact` keeps the graph of a double backward: three times the memory of a plain step at 135 M
    parameters. The default is therefore the finite difference, whose gradient is the same up to
    5e-3 in float32. autocast: under bf16 that is rough, and the adversarial step, which agrees to
    first order in rho, takes its place, unless the penalty is squared. half: of weights of half
    precision most of a shift rounds away, so that only `exact` is left.
    """
    if p.wdpo_mode is not None:
        return p.wdpo_mode
    if p.released or half:
        return "exact"
    if not autocast:
        return "finite_difference"
    return "exact" if p.squared else "adversarial"


def squared_norms(gradient: Tensor) -> Tensor:
    """||g_i||² of each pair, (b,), from the gradient at its two rows i and b + i of (2b, T, width);
    float32 or wider."""
    rows = gradient.flatten(1)
    rows = rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows
    return rows.square().sum(1).view(2, -1).sum(0)


def embedding_norm(model: nn.Module) -> float:
    """Root-mean-square Euclidean norm of what the embedding layer gives for each token, the unit of
    a relative rho.

    Of the layer's output, which some models scale after looking it up; on several ranks that of the
    first, the only one sure to hold the weights.
    """
    embed = unwrapped(model).get_input_embeddings()
    tokens = torch.arange(len(embed.weight), device=embed.weight.device)
    with torch.no_grad():
        squares = [embed(chunk).float().square().sum(-1) for chunk in tokens.split(4096)]
        norm = float(broadcast(torch.cat(squares).mean().sqrt()))
    if not 0 < norm < float("inf"):
        raise ValueError(
            f"the token embeddings have the norm {norm}: no radius can be given in units of it. Use"
            " --rho_unit absolute."
        )
    return norm


def twice_differentiable_attention() -> contextlib.AbstractContextManager:
    """Scaled dot-product attention by plain operations: the fused kernels have no second
    derivative."""
    return sdpa_kernel(SDPBackend.MATH)
