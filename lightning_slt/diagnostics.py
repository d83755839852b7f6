r"""Do the chains agree, and how many independent draws are they worth: :math:`\hat R`, ESS, autocorrelation time.

Vehtari, Gelman, Simpson, Carpenter & Bürkner, *Rank-normalization, folding, and localization*, arXiv:1903.08008, with
ArviZ's names and conventions: chains are split into halves (of an odd number of draws the middle one is dropped), and
autocorrelations are cut by Geyer's initial monotone sequence.

A diagnosis that cannot be made is NaN, never a number: with fewer than 4 draws, with a value that is not finite, or
where all values are equal. (ArviZ calls every draw of a constant trace effective; a chain that stands still has shown
nothing.) :math:`\hat R` is NaN for a single chain too, whose halves cannot show that another chain would disagree.
"""

import math

import torch
from torch import Tensor


def rhat(traces: Tensor) -> float:
    r"""Rank-normalized split :math:`\hat R`: the larger of the bulk's and the tails' (arXiv:1903.08008).

    :math:`\hat R` of the normal scores of the split traces :math:`x`, and of :math:`|x - \mathrm{median}(x)|`. It is
    insensitive to heavy tails, and sees chains that differ in scale alone.

    Args:
        traces: One scalar per draw, such as the loss, [chain, draw].

    Returns:
        :math:`\hat R`, near 1 where chains agree; infinite where every half chain is constant and they differ; NaN
        where it cannot be told (see the module).

    Raises:
        ValueError: If `traces` is not [chain, draw].

    Example:
        >>> traces = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
        >>> rhat(traces) < 1.01 < 1.3 < rhat(traces + torch.arange(4)[:, None])
        True
    """
    split = _split(traces, min_chains=2)
    if split is None:
        return math.nan
    bulk = _rhat(_normal_scores(split))
    tail = _rhat(_normal_scores((split - _median(split)).abs()))
    # Folding two values gives a constant, of which R-hat is NaN: the bulk then decides alone.
    return float(torch.fmax(bulk, tail))


def split_rhat(traces: Tensor) -> float:
    r"""Split :math:`\hat R` of the values themselves (arXiv:1903.08008).

    .. math:: \hat R = \sqrt{\frac{B/W + N - 1}{N}}

    with :math:`N` draws in each half chain, :math:`W` the mean of their variances and :math:`B/N` the variance of
    their means.

    Args:
        traces: One scalar per draw, [chain, draw].

    Returns:
        :math:`\hat R`; infinite or NaN as in :func:`rhat`.

    Raises:
        ValueError: If `traces` is not [chain, draw].

    Example:
        >>> round(split_rhat(torch.tensor([[0.0, 1.0, 0.0, 1.0], [2.0, 3.0, 2.0, 3.0]])), 6)
        1.779513
    """
    split = _split(traces, min_chains=2)
    return math.nan if split is None else float(_rhat(split))


def ess_bulk(traces: Tensor) -> float:
    r"""Effective sample size of the bulk: :math:`C T / \tau` of the rank-normalized traces (arXiv:1903.08008).

    Args:
        traces: One scalar per draw, [chain, draw].

    Returns:
        How many independent draws all chains together are worth; at most :math:`C T \log_{10}(C T)`; NaN where it
        cannot be told (see the module).

    Raises:
        ValueError: If `traces` is not [chain, draw].

    Example:
        >>> traces = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
        >>> 1500 < ess_bulk(traces) < 2500
        True
    """
    split = _split(traces, min_chains=1)
    return math.nan if split is None else split.numel() / _autocorrelation_time(_normal_scores(split))


def autocorrelation_time(traces: Tensor) -> float:
    r"""Integrated autocorrelation time of the values: the variance of their mean is :math:`\tau \sigma^2 / (C T)`.

    .. math:: \tau = 1 + 2 \sum_{t \ge 1} \rho_t

    Chains that disagree raise it, as in the ESS. :math:`C T / \tau` is ArviZ's `ess(method="mean")`.

    Args:
        traces: One scalar per draw, [chain, draw].

    Returns:
        :math:`\tau` in draws: 1 for independent ones, :math:`(1 + \phi)/(1 - \phi)` for an AR(1) process; NaN where
        it cannot be told (see the module).

    Raises:
        ValueError: If `traces` is not [chain, draw].

    Example:
        >>> traces = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
        >>> 0.8 < autocorrelation_time(traces) < 1.2
        True
    """
    split = _split(traces, min_chains=1)
    return math.nan if split is None else _autocorrelation_time(split)


def _split(traces: Tensor, *, min_chains: int) -> Tensor | None:
    """Half chains in float64, [2 * chain, draw // 2]; None where no diagnosis can be made."""
    if traces.ndim != 2:
        raise ValueError(
            f"`traces` must be one scalar per draw, [chain, draw]; got shape {tuple(traces.shape)}. "
            "Write traces[None] for a single chain, and one call for each quantity."
        )
    # Moved before it is cast: some devices have no float64.
    values = traces.detach().cpu().double()
    chains, draws = values.shape
    if chains < min_chains or draws < 4 or not bool(values.isfinite().all()):
        return None
    half = draws // 2
    split = torch.cat([values[:, :half], values[:, -half:]])
    return None if bool((split == split[0, 0]).all()) else split


def _median(values: Tensor) -> Tensor:
    """Mean of the two middle values: `torch.median` takes the lower one."""
    ordered = values.flatten().sort().values
    count = len(ordered)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def _normal_scores(values: Tensor) -> Tensor:
    r"""Blom's scores :math:`\Phi^{-1}((r - 3/8)/(S + 1/4))` of the average ranks :math:`r` among all values."""
    ordered = values.flatten().sort().values
    first, past = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    ranks = (first + past + 1).double() / 2
    scores: Tensor = torch.special.ndtri((ranks - 3 / 8) / (values.numel() + 1 / 4))
    return scores


def _rhat(chains: Tensor) -> Tensor:
    draws = chains.shape[1]
    within = chains.var(1).mean()
    between = draws * chains.mean(1).var()
    return ((between / within + draws - 1) / draws).sqrt()


def _autocovariance(chains: Tensor) -> Tensor:
    r"""Biased autocovariance :math:`\frac1N \sum_n x_n x_{n+t}` of each centred chain at every lag, [chain, lag]."""
    draws = chains.shape[1]
    # Zero padding to twice the length keeps the circular convolution from wrapping around.
    spectrum = torch.fft.rfft(chains - chains.mean(1, keepdim=True), n=2 * draws)
    covariance: Tensor = torch.fft.irfft(spectrum.abs().square(), n=2 * draws)[:, :draws] / draws
    return covariance


def _autocorrelation_time(chains: Tensor) -> float:
    r"""Geyer's estimate :math:`\tau = -1 + 2 \sum_{k<K} P_k + \rho_{2K}` from the pairs :math:`P_k`.

    :math:`P_k = \rho_{2k} + \rho_{2k+1}`, made monotone by a running minimum; :math:`K` is the first pair that is not
    positive, or the last one within the draws. With :math:`W` and :math:`V^+` the within-chain and the total variance
    and :math:`s_t` the mean autocovariance, :math:`\rho_t = 1 - (W - s_t)/V^+` (arXiv:1903.08008).
    """
    draws = chains.shape[1]
    covariance = _autocovariance(chains).mean(0)
    within = covariance[0] * draws / (draws - 1)
    total = covariance[0] + chains.mean(1).var()
    rho = 1 - (within - covariance) / total
    rho[0] = 1.0

    pairs = rho[: draws // 2 * 2].reshape(-1, 2).sum(1)
    last = max(0, (draws - 3) // 2)
    stops = (pairs[: last + 1] <= 0).nonzero()
    cut = int(stops[0]) if len(stops) else last
    tail = rho[2 * cut] if rho[2 * cut] > 0 or pairs[cut] >= 0 else rho.new_zeros(())
    tau = -1 + 2 * pairs[:cut].cummin(0).values.sum() + tail
    # Antithetic chains could push the sum to zero or below it.
    return max(float(tau), 1 / math.log10(chains.numel()))
