"""A competitor: DPO and the KL ball in JAX, Newton's method in lock-step over replicates.

As a user of JAX would write it: one jitted program in float64, `lax.map` over chunks of replicates
that stay in cache, a `while_loop` that stops when every certificate of the chunk has closed. The
start, the step and the certificate are those of our kernels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

Array = np.ndarray


def make(kind: str, radius: float, bound: float, chunk: int) -> Callable[[Array], tuple[Any, Any]]:
    """fit(ut (R, d, n)) -> theta (R, d) and gaps (R,), beta = 1 and theta_ref = 0; kind "mean" or
    "kl". R must be a multiple of the chunk."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    kl = kind == "kl"

    def loss_and_slope(x: Any) -> tuple[Any, Any]:
        t = jnp.exp(-jnp.abs(x))
        return jnp.log1p(t) - jnp.minimum(x, 0), jnp.where(x < 0, 1.0, t) / (1 + t)

    def mean(u: Any, v: Any, centre: Any) -> tuple[Any, ...]:
        n = u.shape[-1]
        loss, s = loss_and_slope(jnp.einsum("rd,rdn->rn", v, u))
        g = -jnp.einsum("rn,rdn->rd", s / n, u)
        H = jnp.einsum("rdn,ren->rde", u * (s * (1 - s) / n)[:, None, :], u)
        value = loss.sum(-1) / n
        return value, g, H, value, jnp.zeros_like(value)

    def ball(u: Any, v: Any, centre: Any) -> tuple[Any, ...]:
        w, lam, n = v[:, :-1], v[:, -1], u.shape[-1]
        loss, s = loss_and_slope(jnp.einsum("rd,rdn->rn", w, u))
        y = (loss - centre[:, None]) / lam[:, None]
        e = jnp.exp(y) / n
        mass = e.sum(-1)
        y_bar = (e * y).sum(-1) / mass
        variance = (e * y * y).sum(-1) / mass - y_bar**2
        es = e * s / mass[:, None]
        pulled = jnp.einsum("rcn,rdn->rcd", jnp.stack([es, es * (y - y_bar[:, None])], 1), u)
        g, cross = -pulled[:, 0], pulled[:, 1] / lam[:, None]
        bend = es * (1 + s * (1 / lam[:, None] - 1))
        H = jnp.einsum("rdn,ren->rde", u * bend[:, None, :], u)
        H = H - g[:, :, None] * g[:, None, :] / lam[:, None, None]
        slope = radius + jnp.log(mass) - y_bar
        H = jnp.concatenate([H, cross[:, :, None]], 2)
        last = jnp.concatenate([cross, (variance / lam)[:, None]], 1)[:, None, :]
        value = centre + lam * (radius + jnp.log(mass))
        whole = jnp.concatenate([g, slope[:, None]], 1)
        return value, whole, jnp.concatenate([H, last], 1), centre + lam * y_bar, slope

    def start(u: Any) -> tuple[Any, Any, Any]:
        n, d = u.shape[-1], u.shape[1]
        mu, S = u.sum(-1) / n, jnp.einsum("rdn,ren->rde", u, u) / n
        trace = jnp.trace(S, axis1=1, axis2=2)
        ridge = 1e-8 * trace[:, None, None] * jnp.eye(d)
        x = jnp.linalg.solve(S + ridge, 2 * mu[..., None])[..., 0]
        if not kl:
            return x, jnp.zeros(u.shape[0]), trace
        c = jnp.clip((x * mu).sum(-1) / 2, 0, 1 - 1e-6)
        shrink = 1 - jnp.sqrt(2 * radius / jnp.maximum(-jnp.log1p(-c), 1e-12))
        x = x * jnp.maximum(shrink, 0.02)[:, None]
        along, square = (x * mu).sum(-1), jnp.einsum("rd,rde,re->r", x, S, x)
        slope = 1 / (1 + jnp.exp(along))
        lam = jnp.sqrt((square - along**2) * slope**2 / (2 * radius))
        v = jnp.concatenate([x, jnp.maximum(lam, 1e-3)[:, None]], 1)
        return v, jnp.log1p(jnp.exp(-along)), trace

    def newton(u: Any) -> tuple[Any, Any]:
        d = u.shape[1]
        v, centre, trace = start(u)
        evaluate = ball if kl else mean

        def gap_of(at: tuple[Any, ...], v: Any) -> Any:
            value, g, _, expected, slope = at
            g = g[:, :d]
            mixed = jnp.where(slope < 0, -slope / (radius - slope), 0.0) if kl else 0.0
            norm = jnp.linalg.norm(g, axis=-1)
            linear = (g * v[:, :d]).sum(-1) + bound * norm
            return value - (1 - mixed) * expected + linear + mixed * 4 * bound * jnp.sqrt(trace)

        def body(state: tuple[Any, ...]) -> tuple[Any, ...]:
            v, at, steps, _, size, before, step, old, slope = state
            value, g, H, expected, _ = at
            enough = value <= old + 1e-4 * size * slope + 2e-15 * (1 + old)
            accepted = (steps == 0) | (-slope <= 1e-8 * (1 + old)) | enough
            factor = jnp.linalg.cholesky(H)
            new = -jax.scipy.linalg.cho_solve((factor, True), g[..., None])[..., 0]
            if kl:
                far = -new[:, -1] > 0.9 * v[:, -1]
                fraction = 0.9 * v[:, -1] / jnp.maximum(-new[:, -1], 1e-300)
                new = new * jnp.where(far, fraction, 1.0)[:, None]
            size = jnp.where(accepted, 1.0, size / 2)
            before = jnp.where(accepted[:, None], v, before)
            step = jnp.where(accepted[:, None], new, step)
            old = jnp.where(accepted, value, old)
            slope = jnp.where(accepted, (g * step).sum(-1), slope)
            done = gap_of(at, v) <= 1e-11
            v_new = jnp.where(done[:, None], v, before + size[:, None] * step)
            at = evaluate(u, v_new, expected if kl else centre)
            closed = jnp.all(gap_of(at, v_new) <= 1e-11)
            return v_new, at, steps + 1, closed, size, before, step, old, slope

        at = evaluate(u, v, centre)
        zero = jnp.zeros(u.shape[0])
        state = (v, at, 0, False, zero + 1, v, jnp.zeros_like(v), at[0], zero)
        state = jax.lax.while_loop(lambda s: ~s[3] & (s[2] < 30), body, state)
        return state[0][:, :d], gap_of(state[1], state[0])

    @partial(jax.jit)
    def fit(ut: Any) -> tuple[Any, Any]:
        R, d, n = ut.shape
        theta, gap = jax.lax.map(newton, ut.reshape(R // chunk, chunk, d, n))
        return theta.reshape(R, d), gap.reshape(R)

    return lambda ut: jax.block_until_ready(fit(ut))
