"""Invertible feature maps `phi`, one family per class, one interface.

A map is a pytree with

* `phi(z)` and `phi.inverse(x)` on `(n, d)` arrays,
* `phi.target_logits(head, x)`: the logits `W phi^-1(x) + c` of the transformed
  classifier,
* `phi.pull(head)`: for affine maps the head `(M, m)` with `M = W A^-1`, `m = c - M b`,
  so that those logits are `M x + m`,
* `affine`: whether an affine `(A, b)` exists, so that the Lipschitz rungs can be
  certified; `why_not` says why not.

`FAMILIES` maps names to `start(dim, key)` functions that return the identity (or the
nearest the family has to it).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from tta_jax._internal.typing import Array, ArrayLike, Scalar
from tta_jax.core.heads import SoftmaxHead
from tta_jax.core.linalg import matmul


@dataclass_transform(frozen_default=True)
def family(cls):
    """Register a map class as a frozen pytree dataclass."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


class FeatureMap(abc.ABC):
    """Base of all families; see the module's docstring for the interface."""

    affine: ClassVar[bool] = True
    why_not: str = ""

    @abc.abstractmethod
    def __call__(self, z: ArrayLike) -> Array:
        """`phi(z)`, `(n, d)`."""

    @abc.abstractmethod
    def inverse(self, x: ArrayLike) -> Array:
        """`phi^-1(x)`, `(n, d)`."""

    @abc.abstractmethod
    def pull(self, head: SoftmaxHead) -> SoftmaxHead:
        """The head `(M, m)` on `x` with the logits of `head` on `phi^-1(x)`; affine
        maps only.
        """

    def target_logits(self, head: SoftmaxHead, x: ArrayLike) -> Array:
        return (
            self.pull(head).logits(x) if self.affine else head.logits(self.inverse(x))
        )


def _pull(weight: Array, shift: Array, head: SoftmaxHead) -> SoftmaxHead:
    return SoftmaxHead(weight, head.bias - matmul(weight, shift))


@family
class Identity(FeatureMap):
    """`phi(z) = z`."""

    def __call__(self, z):
        return jnp.asarray(z)

    def inverse(self, x):
        return jnp.asarray(x)

    def pull(self, head):
        return head


@family
class Translation(FeatureMap):
    """`phi(z) = z + b`, `b (d,)`."""

    shift: Array

    def __call__(self, z):
        return z + self.shift[None]

    def inverse(self, x):
        return x - self.shift[None]

    def pull(self, head):
        return _pull(jnp.asarray(head.weight), self.shift, head)


@family
class Diagonal(FeatureMap):
    """`phi(z) = exp(log_scale) * z + b`; positive scales, so always invertible."""

    log_scale: Array
    shift: Array

    def __call__(self, z):
        return z * jnp.exp(self.log_scale)[None] + self.shift[None]

    def inverse(self, x):
        return (x - self.shift[None]) * jnp.exp(-self.log_scale)[None]

    def pull(self, head):
        return _pull(head.weight * jnp.exp(-self.log_scale)[None], self.shift, head)


@family
class Rotation(FeatureMap):
    """`phi(z) = R F z + b`, `R = (I - S)^-1 (I + S)` the Cayley transform of a skew
    `S`, F an optional reflection.

    R covers the rotations without eigenvalue -1; F (`flip` is -1) reflects the first
    axis, for the other half of the orthogonal group, which gradients cannot reach.

    Attributes:
      generator: `(d, d)`; its skew part `(X - X') / 2` is S.
      shift: `(d,)`.
      flip: scalar, 1 or -1; never learned.
    """

    generator: Array
    shift: Array
    flip: Array

    @property
    def matrix(self) -> Array:
        """`A = R F`, `(d, d)`."""
        skew = (self.generator - self.generator.T) / 2
        eye = jnp.eye(skew.shape[0], dtype=skew.dtype)
        rotation = jnp.linalg.solve(eye - skew, eye + skew)
        return rotation.at[:, 0].multiply(jax.lax.stop_gradient(self.flip))

    def __call__(self, z):
        return matmul(z, self.matrix.T) + self.shift[None]

    def inverse(self, x):
        return matmul(x - self.shift[None], self.matrix)

    def pull(self, head):
        return _pull(matmul(head.weight, self.matrix.T), self.shift, head)  # A^-1 = A'


@family
class LowRankDiagonal(FeatureMap):
    """`phi(z) = (diag(s) + U V') z + b`, inverted by the Woodbury identity;
    `U, V (d, r)`, `s = exp(log_scale)`.
    """

    log_scale: Array
    left: Array
    right: Array
    shift: Array

    def __call__(self, z):
        return (
            z * jnp.exp(self.log_scale)[None]
            + matmul(matmul(z, self.right), self.left.T)
            + self.shift[None]
        )

    def _solve_right(self, rows: Array) -> Array:
        """`rows A^-1` for `(k, d)` rows."""
        scaled = rows * jnp.exp(-self.log_scale)[None]
        inner = jnp.eye(self.left.shape[1], dtype=rows.dtype) + matmul(
            (self.right * jnp.exp(-self.log_scale)[:, None]).T, self.left
        )
        correction = jnp.linalg.solve(inner.T, matmul(scaled, self.left).T).T
        back = matmul(correction, self.right.T)
        return scaled - back * jnp.exp(-self.log_scale)[None]

    def inverse(self, x):
        # A^-1 v for columns v is `v' A^-T`: the same identity with U and V exchanged.
        return LowRankDiagonal(
            self.log_scale, self.right, self.left, self.shift
        )._solve_right(x - self.shift[None])

    def pull(self, head):
        return _pull(self._solve_right(jnp.asarray(head.weight)), self.shift, head)


@family
class Dense(FeatureMap):
    """`phi(z) = A z + b`, A `(d, d)`, solved by LU."""

    matrix: Array
    shift: Array

    def __call__(self, z):
        return matmul(z, self.matrix.T) + self.shift[None]

    def inverse(self, x):
        return jnp.linalg.solve(self.matrix, (x - self.shift[None]).T).T

    def pull(self, head):
        weight = jnp.asarray(head.weight)
        return _pull(jnp.linalg.solve(self.matrix.T, weight.T).T, self.shift, head)


@family
class PublishedPair(FeatureMap):
    """The paper's pair (A, Abar), tied by a penalty. Certified as it is used:
    `A^-1 := Abar`, so `phi` solves with Abar.

    Attributes:
      matrix: A, which the published algorithm applies to the source while learning; not
        part of the certified map.
      inverse_matrix: Abar `(d, d)`.
      shift: `(d,)`.
    """

    matrix: Array
    inverse_matrix: Array
    shift: Array

    def __call__(self, z):
        return (
            jnp.linalg.solve(self.inverse_matrix, jnp.asarray(z).T).T + self.shift[None]
        )

    def inverse(self, x):
        return matmul(x - self.shift[None], self.inverse_matrix.T)

    def pull(self, head):
        return _pull(matmul(head.weight, self.inverse_matrix), self.shift, head)

    def penalty(self) -> Array:
        """`||A Abar - I||^2 + ||Abar A - I||^2` [P]."""
        eye = jnp.eye(self.matrix.shape[0], dtype=self.matrix.dtype)
        first, second = (
            matmul(self.matrix, self.inverse_matrix) - eye,
            matmul(self.inverse_matrix, self.matrix) - eye,
        )
        return jnp.sum(first**2) + jnp.sum(second**2)


@family
class AffineCompletion:
    """An invertible affine map `z -> A z + b` by factors of low rank.

    Attributes:
      gain: `A` is `gain I + left right^T`, its inverse
        `I / gain + left_inverse right_inverse^T`.
      left, right, left_inverse, right_inverse: `(d, 2 min(K_S, d))`.
      shift: b `(d,)`.
    """

    gain: Array
    left: Array
    right: Array
    left_inverse: Array
    right_inverse: Array
    shift: Array

    def __call__(self, features: Array) -> Array:
        """`A z + b` of rows `(n, d)`."""
        return self.linear(features) + self.shift[None]

    def linear(self, features: Array) -> Array:
        """`A z` of rows `(n, d)`."""
        moved = matmul(matmul(features, self.right), self.left.T)
        return self.gain * features + moved

    def inverse(self, features: Array) -> Array:
        """`A^-1 (x - b)` of rows `(n, d)`."""
        rows = features - self.shift[None]
        moved = matmul(matmul(rows, self.right_inverse), self.left_inverse.T)
        return rows / self.gain + moved


@family
class LogitAffine(FeatureMap):
    """The map known by what the bound sees of it: target logits `M x + m`, M
    `(K_S, d)`, m `(K_S,)`.

    `tight` and `oscillation` hold for every (M, m). `complete` adds an affine map of
    the source with exactly these logits, where one exists; the Lipschitz rungs,
    `phi` and its inverse need it (docs/theory.md, section 3.8).

    Attributes:
      weight, bias: M and m.
      completion: the affine map, or None.
      reason: why there is none.
    """

    weight: Array
    bias: Array
    completion: AffineCompletion | None = None
    reason: str = dataclasses.field(
        default="the logit-affine map has not been completed", metadata={"static": True}
    )

    @property
    def affine(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.completion is not None

    @property
    def why_not(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "" if self.affine else self.reason

    def _completed(self) -> AffineCompletion:
        if self.completion is None:
            raise ValueError(
                f"feature_map: only its logits are known ({self.reason}); use "
                "target_logits"
            )
        return self.completion

    def __call__(self, z):
        return self._completed()(jnp.asarray(z))

    def inverse(self, x):
        return self._completed().inverse(jnp.asarray(x))

    def pull(self, head):
        del head  # the head is already inside M and m
        return SoftmaxHead(self.weight, self.bias)

    def target_logits(self, head, x):
        return self.pull(head).logits(x)

    def complete(
        self,
        head: SoftmaxHead,
        active: np.ndarray,
        source_moments: tuple[np.ndarray, float],
        target_moments: tuple[np.ndarray, float],
    ) -> LogitAffine:
        """The same logits with an affine map of the source, in float64 on the host's
        CPU; see `affine_completion`.

        Args:
          head: the source head, `(K_S, d)`.
          active: `(K_S,)` bool, classes that are used.
          source_moments, target_moments: mean `(d,)` of the features and the sum of
            their variances.
        """

        def wide(v):
            return np.asarray(v, np.float64)

        (mean_s, spread_s), (mean_t, spread_t) = source_moments, target_moments
        with (
            jax.enable_x64(True),
            jax.default_device(jax.local_devices(backend="cpu")[0]),
        ):
            completion, check = jax.device_get(
                _affine_completion(
                    SoftmaxHead(wide(head.weight), wide(head.bias)),
                    SoftmaxHead(wide(self.weight), wide(self.bias)),
                    np.asarray(active),
                    wide(mean_s),
                    wide(mean_t),
                    wide(completion_gain(spread_s, spread_t)),
                )
            )
        if check.exists:
            return LogitAffine(self.weight, self.bias, completion, reason="")
        why = "they leave the range of the source's"
        too_many = active.sum() - 1 > head.weight.shape[1]
        if check.rank_source != check.rank_target or too_many:
            why = (
                f"rank {check.rank_target} in the target, {check.rank_source} in the "
                "source"
            )
        reason = f"no affine map has these logits: {why}"
        return LogitAffine(self.weight, self.bias, reason=reason)


class CompletionCheck(NamedTuple):
    """Whether there is a completion.

    Attributes:
      exists: scalar bool.
      rank_source, rank_target: scalar int, of the centred weights.
    """

    exists: Array
    rank_source: Array
    rank_target: Array


# of the target's spread, which the completion gives the directions that no logit sees
SHRINK = 0.1


def completion_gain(spread_source: Scalar, spread_target: Scalar) -> float:
    """The `gain` of `affine_completion` from the sums of the features' variances."""
    return SHRINK * np.sqrt(
        max(float(spread_target), 1e-12) / max(float(spread_source), 1e-12)
    )


def affine_completion(
    head: SoftmaxHead,
    mapped: SoftmaxHead,
    active: Array,
    mean_source: Array,
    mean_target: Array,
    gain: Array,
) -> tuple[AffineCompletion, CompletionCheck]:
    """The affine map phi of the source for which `W phi^-1(x) + c` are the logits
    `M x + m`, up to a constant (docs/theory.md, section 3.8).

    `A^-1 = Wc^+ Mc + N`. N is free on the directions that no logit sees. There A
    reflects the source's directions onto the target's and scales them by `gain`, a
    tenth of what would give them the target's spread: independent points in many
    dimensions are further from each other than from their mean, so a small spread gives
    a smaller empirical distance; which direction goes where hardly matters then. The
    reflection `H = I - Q (I + P)^-1 Q^T` takes the directions `V` that source logits
    see to those of the target, `-U O`: `V^T U O = P` is a polar decomposition, so
    `Q = V + U O` has `Q^T Q = 2 (I + P)`, which is never badly conditioned. All factors
    have as many columns as there are classes; nothing is `(d, d)`. Pure; meant for
    float64.

    Args:
      head, mapped: `(W, c)` and `(M, m)`, `(K_S, d)`.
      active: `(K_S,)` bool.
      mean_source, mean_target: `(d,)`, of the features; A and b take the one to the
        other where no logit sees it.
      gain: scalar.

    Returns:
      The map, the identity where there is none, and whether there is one.
    """
    number = jnp.sum(active, dtype=head.weight.dtype)

    def keep(v):
        return jnp.where(active.reshape(-1, *[1] * (v.ndim - 1)), v, 0.0)

    def centre(v):
        return keep(v - jnp.sum(keep(v), 0, keepdims=True) / number)

    centred, centred_m = centre(head.weight), centre(mapped.weight)
    u_w, s_w, v_w = jnp.linalg.svd(centred, full_matrices=False)
    u_m, s_m, v_m = jnp.linalg.svd(centred_m, full_matrices=False)
    seen, seen_m = (s > 1e-6 * jnp.maximum(s[0], 1e-300) for s in (s_w, s_m))
    rank, rank_m = jnp.sum(seen), jnp.sum(seen_m)
    u_w, u_m = jnp.where(seen, u_w, 0.0), jnp.where(seen_m, u_m, 0.0)
    offset = keep(head.bias - mapped.bias)
    outside = centre(offset) - matmul(u_m, matmul(u_m.T, centre(offset)))
    gap = centred_m - matmul(u_w, matmul(u_w.T, centred_m))
    fits = (jnp.max(jnp.abs(outside)) <= 1e-6 * (1 + jnp.max(jnp.abs(offset)))) & (
        jnp.max(jnp.abs(gap)) <= 1e-6 * s_m[0]
    )

    # Columns that the logits of the source and of the target see; the identity takes
    # the place of what they do not.
    source, target = (
        jnp.where(seen[:, None], v_w, 0.0).T,
        jnp.where(seen_m[:, None], v_m, 0.0).T,
    )
    both = (seen & seen_m)[:, None] & (seen & seen_m)[None]
    eye = jnp.eye(s_w.shape[0], dtype=s_w.dtype)
    # `Wc^+ Mc` from the target's columns to the source's.
    inner = matmul(u_w.T, u_m) * s_m[None] / jnp.where(seen, s_w, 1.0)[:, None]
    outer = jnp.where(both, jnp.linalg.inv(jnp.where(both, inner, eye)), 0.0)
    left, stretch, right = jnp.linalg.svd(
        jnp.where(both, matmul(source.T, target), eye)
    )
    turn = jnp.where(both, matmul(right.T, left.T), 0.0)  # O
    crossed = source + matmul(target, turn)  # Q
    shrunk = matmul(matmul(crossed, left / (1 + stretch)[None]), left.T)

    def join(a, b):
        return jnp.concatenate([a, b], axis=1)

    found = AffineCompletion(
        gain=gain,
        left=join(-gain * shrunk, matmul(target, outer + gain * turn)),
        right=join(crossed, source),
        left_inverse=join(
            -shrunk / gain, matmul(source, jnp.where(both, inner, 0.0) + turn.T / gain)
        ),
        right_inverse=join(crossed, target),
        shift=jnp.zeros_like(mean_source),
    )
    # b: Mc b = C (c - m) where logits see it, the target's mean elsewhere.
    inverse = jnp.where(seen_m, 1.0 / jnp.where(seen_m, s_m, 1.0), 0.0)
    shift = matmul(v_m.T, inverse * matmul(u_m.T, centre(offset)))
    rest = mean_target - found.linear(mean_source[None])[0]
    found = dataclasses.replace(
        found, shift=shift + rest - matmul(target, matmul(target.T, rest))
    )
    exists = fits & (rank == rank_m) & (number - 1 <= head.weight.shape[1])
    # The identity: with no factor, gain 1 and no shift.
    found = jax.tree.map(lambda v: jnp.where(exists, v, 0.0), found)
    found = dataclasses.replace(found, gain=jnp.where(exists, gain, 1.0))
    return found, CompletionCheck(exists, rank, rank_m)


# What runs once on small arrays takes longer to optimise than to run.
_affine_completion = jax.jit(
    affine_completion, compiler_options={"xla_backend_optimization_level": 0}
)


@family
class CouplingLayers(FeatureMap):
    """Affine coupling layers (a non-linear invertible network), built from Flax NNX
    linear layers.

    Layer l keeps the features of parity l and moves the others:
    `x = z * exp(2 tanh(s(kept))) + t(kept)`. The logits have no certified constant in
    closed form, so only `tight` and `oscillation` are certified.

    Attributes:
      layers: for each layer the NNX state of its network
        `(d_kept -> hidden -> 2 d_moved)`.
      dim, hidden: static sizes.
    """

    affine: ClassVar[bool] = False
    why_not: ClassVar[str] = (  # pyright: ignore[reportIncompatibleVariableOverride]
        "the map is not affine, so no Lipschitz constant is certified"
    )

    layers: tuple[PyTree, ...]
    dim: int = dataclasses.field(metadata={"static": True})
    hidden: int = dataclasses.field(metadata={"static": True})

    def _shift_scale(self, index: int, kept: Array) -> tuple[Array, Array]:
        from flax import nnx

        sizes = _coupling_sizes(self.dim, index)
        network = nnx.eval_shape(
            lambda: _coupling_network(sizes, self.hidden, jax.random.key(0))
        )
        nnx.update(network, nnx.State(self.layers[index]))
        log_scale, shift = jnp.split(network(kept), 2, axis=-1)
        return jnp.exp(2 * jnp.tanh(log_scale)), shift

    def __call__(self, z):
        x = jnp.asarray(z)
        for index in range(len(self.layers)):
            kept, moved = x[:, index % 2 :: 2], x[:, 1 - index % 2 :: 2]
            scale, shift = self._shift_scale(index, kept)
            x = x.at[:, 1 - index % 2 :: 2].set(moved * scale + shift)
        return x

    def inverse(self, x):
        x = jnp.asarray(x)
        for index in reversed(range(len(self.layers))):
            kept, moved = x[:, index % 2 :: 2], x[:, 1 - index % 2 :: 2]
            scale, shift = self._shift_scale(index, kept)
            x = x.at[:, 1 - index % 2 :: 2].set((moved - shift) / scale)
        return x

    def pull(self, head):
        raise ValueError(
            "feature_map: coupling layers are not affine, there is no pulled-back "
            "head; use target_logits"
        )


def _coupling_sizes(dim: int, index: int) -> tuple[int, int]:
    kept = len(range(index % 2, dim, 2))
    return kept, dim - kept


def _coupling_network(sizes: tuple[int, int], hidden: int, key: Array):
    from flax import nnx

    rngs = nnx.Rngs(params=key)
    return nnx.Sequential(
        nnx.Linear(sizes[0], hidden, rngs=rngs),
        jnp.tanh,
        nnx.Linear(hidden, 2 * sizes[1], kernel_init=nnx.initializers.zeros, rngs=rngs),
    )


def coupling_layers(
    dim: int, key: Array, layers: int = 4, hidden: int = 64
) -> CouplingLayers:
    """The identity as `CouplingLayers`; needs `dim >= 2`."""
    from flax import nnx

    if dim < 2:
        raise ValueError(
            f"feature_map: coupling layers need at least 2 features, found {dim}"
        )
    states = []
    for index, sub in enumerate(jax.random.split(key, layers)):
        network = _coupling_network(_coupling_sizes(dim, index), hidden, sub)
        states.append(nnx.to_pure_dict(nnx.state(network)))
    return CouplingLayers(tuple(states), dim, hidden)


def low_rank(dim: int, key: Array, rank: int = 8) -> LowRankDiagonal:
    """The identity as `LowRankDiagonal` of rank at most `dim`: one factor random, the
    other zero.
    """
    rank = min(rank, dim)
    right = jax.random.normal(key, (dim, rank)) / jnp.sqrt(dim)
    return LowRankDiagonal(
        jnp.zeros(dim), jnp.zeros((dim, rank)), right, jnp.zeros(dim)
    )


FAMILIES: dict[str, Callable[[int, Array], FeatureMap]] = {
    "identity": lambda dim, key: Identity(),
    "translation": lambda dim, key: Translation(jnp.zeros(dim)),
    "diagonal": lambda dim, key: Diagonal(jnp.zeros(dim), jnp.zeros(dim)),
    "rotation": lambda dim, key: Rotation(
        jnp.zeros((dim, dim)), jnp.zeros(dim), jnp.ones(())
    ),
    "low_rank": low_rank,
    "dense": lambda dim, key: Dense(jnp.eye(dim), jnp.zeros(dim)),
    "published_pair": lambda dim, key: PublishedPair(
        jnp.eye(dim), jnp.eye(dim), jnp.zeros(dim)
    ),
    "coupling_layers": coupling_layers,
}
"""Families that start from their dimension alone; `logit_affine` needs a head."""


def logit_affine(head: SoftmaxHead) -> LogitAffine:
    """The identity as `LogitAffine`: M = W, m = c."""
    return LogitAffine(jnp.asarray(head.weight), jnp.asarray(head.bias))
