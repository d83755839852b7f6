r"""Learning of a two-layer linear network in time, and what a sample's weight does to it (Saxe 2014; arXiv:2510.12071).

Gradient flow of ``½ E‖y − W₂W₁x‖²`` with whitened inputs (``E[xxᵀ] = 1``), ``E[yxᵀ] = U diag(s) Vᵀ``, and balanced
initial weights along the same directions learns each mode by itself:

.. math:: G_k(t) = \frac{s_k e^{2 s_k t/\tau}}{e^{2 s_k t/\tau} - 1 + s_k/G_k(0)}, \qquad
          t_k \approx \frac{\tau}{2 s_k} \ln \frac{s_k}{G_k(0)}

With sample (x_p, y_p) weighing a little more, ``E[yxᵀ]`` becomes ``U diag(s) Vᵀ + ε y_p x_pᵀ``. Singular values and
vectors turn, and with ``M = (Uᵀy_p)(Vᵀx_p)ᵀ``

.. math:: \frac{dW}{d\varepsilon} = U \Big[A G + \mathrm{diag}\Big(\frac{dG_k}{ds_k} M_{kk}\Big) + G B^T\Big] V^T
              + (1 - UU^T) y_p (V^T x_p)^T \mathrm{diag}(G_k/s_k) V^T

.. math:: A_{jk} = \frac{s_k M_{jk} + s_j M_{kj}}{s_k^2 - s_j^2}, \qquad
          B_{jk} = \frac{s_k M_{kj} + s_j M_{jk}}{s_k^2 - s_j^2} \qquad (j \neq k)

This holds ``E[xxᵀ]`` at 1 and lets the initial weights turn with the modes; singular values must differ, and V be
complete.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mode_strengths(
    singular_values: Tensor, time: float | Tensor, *, initial: float | Tensor, tau: float = 1.0
) -> Tensor:
    """Strength ``G_k(t)`` of every mode.

    Args:
        singular_values: s ``[mode]``, positive.
        time: t, in the units of τ.
        initial: ``G_k(0)``, positive; one for all or ``[mode]``.
        tau: τ: one over the learning rate.

    Returns:
        ``[mode]``.

    >>> mode_strengths(torch.tensor([2.0, 1.0]), 0.0, initial=0.1)
    tensor([0.1000, 0.1000])
    """
    s = singular_values
    decay = torch.exp(-2 * s * torch.as_tensor(time, dtype=s.dtype) / tau)
    return s / (1 - decay + decay * s / initial)


def learning_times(singular_values: Tensor, *, initial: float | Tensor, tau: float = 1.0) -> Tensor:
    """Times at which each mode has half of its strength: ``(τ/2s) ln(s/G(0) − 1)`` ``[mode]``.

    >>> s = torch.tensor([2.0])
    >>> mode_strengths(s, learning_times(s, initial=0.1), initial=0.1)
    tensor([1.])
    """
    s = singular_values
    return tau / (2 * s) * torch.log(s / initial - 1)


def weight_response(
    u: Tensor,
    s: Tensor,
    v: Tensor,
    x: Tensor,
    y: Tensor,
    time: float,
    *,
    initial: float,
    tau: float = 1.0,
) -> Tensor:
    """``dW/dε``: how the network's map answers at time t to a sample that has weighed ε more all along.

    Args:
        u: Left singular vectors ``[output, mode]``.
        s: Singular values, all different ``[mode]``.
        v: Right singular vectors, complete ``[input, mode]``.
        x: Input of the sample ``[input]``.
        y: Its target ``[output]``.
        time: t.
        initial: ``G_k(0)``.
        tau: τ.

    Returns:
        ``[output, input]``.

    Raises:
        ValueError: If singular values are equal, where single vectors have no derivative.
    """
    gaps = s.square() - s.square()[:, None]  # [j, k]: s_k² − s_j²
    off = ~torch.eye(len(s), dtype=torch.bool)
    if not bool((gaps[off] != 0).all()):
        raise ValueError(f"singular values must differ, got {s.tolist()}; where they are equal take finite differences")
    m = torch.outer(u.T @ y, v.T @ x)
    gaps = torch.where(off, gaps, 1.0)
    a = torch.where(off, (s * m + s[:, None] * m.T) / gaps, 0.0)
    b = torch.where(off, (s * m.T + s[:, None] * m) / gaps, 0.0)
    strengths = mode_strengths(s, time, initial=initial, tau=tau)
    with torch.enable_grad():
        moved = s.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(mode_strengths(moved, time, initial=initial, tau=tau).sum(), moved)
    g = strengths.diag()
    inside = u @ (a @ g + (slopes * m.diag()).diag() + g @ b.T) @ v.T
    outside: Tensor = torch.outer(y - u @ (u.T @ y), (v.T @ x) * strengths / s) @ v.T
    return inside + outside


def linear_network_influence(
    u: Tensor,
    s: Tensor,
    v: Tensor,
    sample: tuple[Tensor, Tensor],
    query: tuple[Tensor, Tensor],
    time: float,
    *,
    initial: float,
    tau: float = 1.0,
) -> float:
    """Influence of a sample on the loss ``½‖y − Wx‖²`` of a query at time t: ``−r_qᵀ (dW/dε) x_q``.

    Args:
        u: See :func:`weight_response`, here and below.
        s: Singular values.
        v: Right singular vectors.
        sample: Input and target ``([input], [output])``.
        query: Input and target.
        time: t.
        initial: ``G_k(0)``.
        tau: τ.

    Returns:
        Negative where more weight on the sample helps the query.
    """
    x, y = query
    residual = y - u @ (mode_strengths(s, time, initial=initial, tau=tau) * (v.T @ x))
    return -float(residual @ weight_response(u, s, v, *sample, time, initial=initial, tau=tau) @ x)
