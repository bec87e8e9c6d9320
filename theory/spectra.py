"""Spectra: weights of the quantile levels, for transport and risk that look at some levels more.

    from theory import aot_unpaired, logistic, lower_tail, spectral_mean
    aot_unpaired(chosen, rejected, logistic, 1.0, spectrum=lower_tail(0.1))  # the worst tenth
    spectral_mean(rewards, lower_tail(0.1))  # its mean, the CVaR

A spectrum w >= 0 has the integral 1 over the levels t in [0, 1], of which 0 is the lowest reward.
It is a function of the ends of pieces of levels, which returns their masses, the integral of w over
each, so that nothing is approximated: quantiles of samples are constant on pieces. The spectral
mean of Acerbi (2002), doi:10.1016/S0378-4266(02)00281-9, is the integral of w(t) Q(t), averse to
risk where w falls. Transport with weights per level, and that it bounds differences of spectral
means: Chittepu et al., arXiv:2603.10938v1 (RAD), of which the abstract was read; the bounds here
are derived (`prefdro verify --explain spectral-risk`). Transport with a spectrum is transport
between two samples whose atoms have the masses of their levels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from theory.transport import Spectrum, gauss_mean, transport

NAMES = ("uniform", "cvar:SHARE", "upper_cvar:SHARE", "exponential:RATE")


def lower_tail(share: float) -> Spectrum:
    """w = 1/share on the lowest levels: the spectral mean is CVaR's, of the worst rewards. Acerbi
    (2002), doi:10.1016/S0378-4266(02)00281-9.

    Args:
        share: of the levels, in (0, 1].

    Returns:
        The spectrum, for `spectral_mean` and the objectives of transport.

    Raises:
        ValueError: another share.

    >>> import torch
    >>> from theory import lower_tail, spectral_mean
    >>> spectral_mean(torch.tensor([1.0, 2.0, 3.0, 4.0]), lower_tail(0.5)).item()
    1.5
    """
    share = _share(share)
    return lambda start, end: (end.clamp(max=share) - start.clamp(max=share)) / share


def upper_tail(share: float) -> Spectrum:
    """w = 1/share on the highest levels: of the best rewards, or, of costs, the worst.

    Args:
        share: of the levels, in (0, 1].

    Returns:
        The spectrum, for `spectral_mean` and the objectives of transport.

    Raises:
        ValueError: another share.

    >>> import torch
    >>> from theory import spectral_mean, upper_tail
    >>> spectral_mean(torch.tensor([1.0, 2.0, 3.0, 4.0]), upper_tail(0.5)).item()
    3.5
    """
    low = 1 - _share(share)
    return lambda start, end: (end.clamp(min=low) - start.clamp(min=low)) / (1 - low)


def exponential(rate: float) -> Spectrum:
    """w(t) proportional to exp(-rate t): averse to risk for a positive rate. An example of Acerbi
    (2002), doi:10.1016/S0378-4266(02)00281-9.

    Args:
        rate: of the decay over all levels, finite and not 0; negative weighs the best rewards more.

    Returns:
        The spectrum, for `spectral_mean` and the objectives of transport.

    Raises:
        ValueError: another rate.

    >>> import torch
    >>> from theory import exponential, spectral_mean
    >>> rewards = torch.tensor([0.0, 1.0], dtype=torch.float64)
    >>> round(spectral_mean(rewards, exponential(2.0)).item(), 6)  # 1/(1 + e)
    0.268941
    """
    if not (math.isfinite(rate) and rate != 0):
        raise ValueError(
            f"the rate must be finite and not 0, got {rate}; without a rate it is uniform."
        )
    return lambda start, end: (
        torch.exp(-rate * start) * torch.expm1(rate * (start - end)) / math.expm1(-rate)
    )


def from_density(w: Callable[[Tensor], Tensor]) -> Spectrum:
    """A smooth w(t) of your own, elementwise, by Gauss–Legendre quadrature on each piece; its
    integral over [0, 1] should be 1.

    >>> import torch
    >>> from theory import spectral_mean
    >>> from theory.spectra import from_density
    >>> spectrum = from_density(lambda t: 2 * (1 - t))
    >>> round(spectral_mean(torch.tensor([0.0, 1.0]).double(), spectrum).item(), 6)  # 1 - 3/4
    0.25
    """
    return lambda start, end: (end - start) * gauss_mean(w, start, end)


def named_spectrum(name: str) -> Spectrum | None:
    """The spectrum of a word such as "cvar:0.1"; None for "uniform", where nothing is weighed."""
    kind, _, number = name.partition(":")
    made = {"cvar": lower_tail, "upper_cvar": upper_tail, "exponential": exponential}
    if kind == "uniform" and not number:
        return None
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if kind not in made or math.isnan(value):
        raise ValueError(f"unknown spectrum {name!r}; there are {', '.join(NAMES)}.")
    return made[kind](value)


def spectral_mean(values: Tensor, spectrum: Spectrum, weights: Tensor | None = None) -> Tensor:
    """∫ w(t) Q(t) dt, the mean of rewards with their quantile levels weighed. Acerbi (2002),
    doi:10.1016/S0378-4266(02)00281-9, with the sign of a reward.

    Args:
        values: (..., n) rewards, in any unit.
        spectrum: w, such as `lower_tail(0.1)`.
        weights: (..., n) probabilities of the values, or None: equal ones.

    Returns:
        (...) means, in the unit of the values.

    >>> import torch
    >>> from theory import lower_tail, spectral_mean
    >>> spectral_mean(torch.tensor([4.0, 1.0, 3.0, 2.0]), lower_tail(0.25)).item()
    1.0
    """
    nothing = torch.zeros_like(values[..., :1])
    return transport(values, nothing, lambda t: t, weights, spectrum=spectrum)


def _share(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError(f"the share of the levels lies in (0, 1], got {share}; 1 is uniform.")
    return share
