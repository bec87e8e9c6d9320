"""A choice of radii in words."""

from theory.radius_choice.rule import RadiusChoice


def describe(choice: RadiusChoice) -> str:
    """The choice as a small table in plain text, with what conflicts and what to compare with.

    The comparison is that of docs/theorems/larger-beta.md, Prop. E.

    Args:
        choice: a `RadiusChoice`, as `suggest_radii` returns it.

    Returns:
        Lines of text: a row for each ball, radii in nats (kl) or in the unit of the features (w1,
        w2), then remarks.

    >>> from theory import describe, suggest_radii
    >>> choice = suggest_radii([[1.0]] * 60 + [[-1.0]] * 40, beta=1.0, bound=5.0)
    >>> print(describe(choice))
    ball radius of collapse covers value covers theta held-out shift collapse cap
    kl   0.0102 0.5         0.0192       0.0192       none           0.0204   0.0102
    ...
    100 pairs, 1 features, mean loss of the DPO fit 0.673.
    ...
    """
    columns = (
        "ball",
        "radius",
        "of collapse",
        "covers value",
        "covers theta",
        "held-out shift",
        "collapse",
        "cap",
    )
    lines = ["".join(f"{name:>15}" for name in columns)]
    for ball in (choice.kl, choice.w1, choice.w2):
        shift = "none" if ball.shift is None else f"{ball.shift:.3g}"
        numbers = [f"{x:.3g}" for x in (ball.radius, ball.fraction, ball.value, ball.theta)]
        cells = [ball.ball, *numbers, shift, f"{ball.collapse:.3g}", f"{ball.cap:.3g}"]
        lines.append("".join(f"{cell:>15}" for cell in cells))
    lines += [
        f"{ball.ball}: {ball.conflict}."
        for ball in (choice.kl, choice.w1, choice.w2)
        if ball.conflict is not None
    ]
    lines += [f"{remark[0].upper()}{remark[1:]}." for remark in choice.remarks]
    groups = f" in {choice.units} groups" if choice.units < choice.n else ""
    if choice.effective < choice.n * (1 - 1e-9):
        groups += f" (by their weights {choice.effective:.3g}, Kish)"
    lines += [
        (
            f"{choice.n} pairs{groups}, {choice.dimension} features, mean loss of the DPO fit"
            f" {choice.mean_loss:.4g}."
        ),
        f"tau at the KL radius: {choice.tau:.3g}; it leaves {choice.share:.0%} of the sample.",
    ]
    if choice.separable:
        lines.append("No beta of plain DPO stands for it: at any of them the bound is the answer.")
    else:
        lines.append(
            f"Compare with plain DPO at beta = {choice.equivalent_beta:.3g}: where the model is"
            " right it is the same policy."
        )
    return "\n".join(lines)
