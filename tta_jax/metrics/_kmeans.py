"""k-means of the items that count."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array


def k_means(
    x: Array, weights: Array, key: Array, clusters: int, rounds: int = 10
) -> Array:
    """One-hot clusters `(n, C)` of the items that count: k-means++ (Arthur,
    Vassilvitskii 2007), then rounds of k-means.
    """
    first, rest = jax.random.split(key)

    def draw(key, mass):
        return jax.random.categorical(key, jnp.log(mass))

    begin = x[draw(first, weights)]
    nearest = jnp.sum((x - begin[None]) ** 2, axis=1)

    def seed(near, key):
        # Copies of what was drawn have no distance left; where nothing has, any item
        # will do.
        mass = jnp.where(jnp.any(near * weights > 0), near * weights, weights)
        centre = x[draw(key, mass)]
        return jnp.minimum(near, jnp.sum((x - centre[None]) ** 2, axis=1)), centre

    _, others = jax.lax.scan(seed, nearest, jax.random.split(rest, clusters - 1))
    centres = jnp.concatenate([begin[None], others])

    def assign(centres):
        distance = jnp.sum(centres**2, axis=1)[None] - 2 * x @ centres.T
        return (
            jax.nn.one_hot(jnp.argmin(distance, axis=1), clusters, dtype=x.dtype)
            * weights[:, None]
        )

    def move(_, centres):
        mine = assign(centres)
        mass = jnp.sum(mine, axis=0)
        return jnp.where(
            mass[:, None] > 0,
            mine.T @ x / jnp.where(mass > 0, mass, 1.0)[:, None],
            centres,
        )

    return assign(jax.lax.fori_loop(0, rounds, move, centres))


def best_k_means(
    x: Array,
    weights: Array,
    key: Array,
    clusters: int,
    *,
    starts: int = 4,
    rounds: int = 20,
) -> tuple[Array, Array]:
    """The best of several k-means: one-hot clusters `(n, C)`, and the share of the
    variance that lies between them.

    Rows of padding are zero and the items that count have mean zero.
    """

    def once(key):
        mine = k_means(x, weights, key, clusters, rounds)
        mass = jnp.sum(mine, axis=0)
        return mine, jnp.sum(
            (mine.T @ x) ** 2 / jnp.where(mass > 0, mass, 1.0)[:, None]
        )

    found, between = jax.lax.map(once, jax.random.split(key, starts))
    total, best = jnp.sum(x**2), jnp.argmax(between)
    return found[best], between[best] / jnp.where(total > 0, total, 1.0)
