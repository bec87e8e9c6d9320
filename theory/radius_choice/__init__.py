"""Which radius? What the data say about rho (KL, W1, W2) and tau, by four considerations and one
rule.

    choice = suggest_radii(u, beta=0.1, held_out=other, groups=person)
    choice.kl.radius, choice.tau, choice.w2.radius
    print(describe(choice))

u (n, d) holds signed feature differences (2y-1)(psi1-psi2) of labelled pairs, w = theta -
theta_ref, m = beta w.u, l = log(1 + exp(-m)). The four considerations, each a function of its own:

* coverage: how large the ball must be to cover sampling error (`kl_coverage`, `value_coverage`,
  `profile_coverage`), of pairs that are independent or come in groups (`design_effects`);
* effective sample size: how much of the sample the worst-case weights leave
  (`temperature_for_share`);
* collapse: the radius from which on the answer is the reference policy (`theory.collapse`);
* held-out shift: how large the ball must be to reach the loss on pairs of another population
  (`shift_radius`).

The rule: the larger of coverage and held-out shift, but at most half the collapse radius and, for
the KL ball, at most the radius that leaves the wanted share of the sample. Where these conflict the
cap is returned and `conflict` says so.

What a radius cannot do. In a well-specified population KLDPO at tau is DPO at beta (1 + 1/tau),
exactly (docs/theorems/larger-beta.md, Prop. E), and at equal KL to the reference the robust methods
hardly beat that DPO anywhere in the ledger. So compare with DPO at `equivalent_beta` before you
believe in a radius. Wasserstein radii are in the unit of the features u: they are not the `--rho`
of `prefdro train --objective wdpo`, which is in the unit of the token embeddings. The KL radius is
in nats and tau in units of the loss in both, but a trainer meets them on each effective batch,
where n is the batch.

Several pairs of one person, prompt or annotator are not independent: without `groups` the radii for
coverage are then too small, and nothing in u shows it.
"""

from theory.radius_choice.coverage import design_effects, kl_coverage, value_coverage
from theory.radius_choice.held_out import shift_radius
from theory.radius_choice.profiles import profile_coverage
from theory.radius_choice.reach import SETS_HERE, radius_for_value
from theory.radius_choice.rule import CAP, SHARE, RadiusChoice, Suggestion, suggest_radii
from theory.radius_choice.share import temperature_for_share
from theory.radius_choice.words import describe

__all__ = [
    "CAP",
    "SETS_HERE",
    "SHARE",
    "RadiusChoice",
    "Suggestion",
    "describe",
    "design_effects",
    "kl_coverage",
    "profile_coverage",
    "radius_for_value",
    "shift_radius",
    "suggest_radii",
    "temperature_for_share",
    "value_coverage",
]
