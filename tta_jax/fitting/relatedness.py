"""Choose the star of a pair: which source class stands for which target class, which
probabilities count as certain, and the scale (docs/theory.md, section 5.2).

Everything is chosen on logits of items that learn, each from the inner fold that left
it out. What is needed of a task is a property of that task; a pair merges two of them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.bounds import star
from tta_jax.core.losses import expected_loss
from tta_jax.fitting.assignment import ClassAssignment, SourceFit

# Ranges over which an item's radius rises from 0 to 1, in sixteenths of the way from
# guessing to certainty.
CUTS = (
    (0, 8),
    (0, 12),
    (0, 16),
    (4, 12),
    (4, 16),
    (8, 14),
    (8, 16),
    (12, 16),
    (4, 4),
    (8, 8),
    (12, 12),
    (15, 15),
)
SCALES = (0.05, 40.0)  # the scale lies between them, or is 0
_HALVINGS = 8  # of that range: to a hundredth
# Certainties are rounded to so many levels, and distances are sums over so many radii,
# while cuts are compared.
_LEVELS, _RADII = 16, 8
_MOST_AT_ONCE = 32  # classes
# With more classes the exchanges take too long, and the cheapest assignment stays.
MOST_ALIGNED = 128


class LabelledLogits(NamedTuple):
    """Logits of one task's own linear classifier on items it has not learned from.

    Attributes:
      logits: `(n, K)`.
      labels, mask: `(n,)`.
    """

    logits: ArrayLike
    labels: ArrayLike
    mask: ArrayLike


class Branches(NamedTuple):
    """Items of one task on the branches of the target classes, before the cut.

    Attributes:
      branch: `(n,)` int32, the most probable target class.
      certainty: `(n,)`, its probability.
      labels: `(n,)` int32, the target class that an item belongs to, or that its source
        class is assigned to.
      mask: `(n,)` bool.
    """

    branch: Array
    certainty: Array
    labels: Array
    mask: Array


class StarClasses(NamedTuple):
    """Which source class stands for which target class, one to one.

    Attributes:
      source_class: `(K_T,)` int32.
      shift: `(K_T,)`, what the source logits gain under the target's class prior.
      target_mask: `(K_T,)` bool, target classes with items.
      possible: scalar bool, whether the source has as many classes as the target.
    """

    source_class: Array
    shift: Array
    target_mask: Array
    possible: Array


class StarChoice(NamedTuple):
    """Cuts and scale.

    Attributes:
      source_cut, target_cut: `(2,)`, as for `star.star_radius`.
      scale: s; 0 where nothing is below guessing.
    """

    source_cut: Array
    target_cut: Array
    scale: Array


class StarFit(NamedTuple):
    """What was chosen for a pair.

    Attributes:
      classes: the assignment.
      directed, theorem: the choice of least `directed`, and of least `theorem`.
    """

    classes: StarClasses
    directed: StarChoice
    theorem: StarChoice


def star_classes(
    classes: ClassAssignment, fit: SourceFit, log_prior: Float[Array, " K_T"]
) -> StarClasses:
    """Take over an assignment.

    Args:
      classes: one to one, if the source has enough classes.
      fit: of the source.
      log_prior: `(K_T,)`, log p_T; -inf for padding.
    """
    used = jnp.sum(classes.source_mask, dtype=jnp.int32)
    found = StarClasses(
        source_class=classes.source_class[classes.source_of],
        shift=jnp.zeros_like(log_prior),
        target_mask=classes.target_mask,
        possible=used == jnp.sum(classes.target_mask, dtype=jnp.int32),
    )
    return _with_shift(found, fit, log_prior)


def _with_shift(classes: StarClasses, fit: SourceFit, log_prior: Array) -> StarClasses:
    gained = log_prior - fit.log_prior[classes.source_class]
    used = classes.target_mask & fit.refits
    return classes._replace(shift=jnp.where(used, gained, 0.0))


def restrict(source: LabelledLogits, classes: StarClasses) -> LabelledLogits:
    """Restrict source logits to the assigned classes, under the target's class prior.

    Items of other classes are masked out.

    Returns:
      Logits and labels of the target's classes.
    """
    size, number = classes.source_class.shape[0], source.logits.shape[1]
    index = jnp.arange(size, dtype=jnp.int32)
    # The last entry collects target classes without items.
    at = jnp.where(classes.target_mask, classes.source_class, number)
    place = jnp.full(number + 1, size, jnp.int32).at[at].set(index).at[-1].set(size)
    labels = place[source.labels]
    mask = source.mask & (labels < size) & classes.possible
    return LabelledLogits(
        source.logits[:, classes.source_class] + classes.shift[None],
        jnp.where(mask, labels, 0),
        mask,
    )


def branches(items: LabelledLogits, target_mask: Bool[Array, " K_T"]) -> Branches:
    """Place items on the branch of their most probable class.

    Args:
      items: logits and labels of the target's classes.
      target_mask: `(K_T,)` bool, classes with items.
    """
    branch, certainty = star.certainty(jnp.where(target_mask, items.logits, -jnp.inf))
    mask = items.mask & target_mask[items.labels]
    return Branches(branch, certainty, jnp.where(mask, items.labels, 0), mask)


def source_branches(source: LabelledLogits, classes: StarClasses) -> Branches:
    """Place source items by the head restricted to the assigned classes."""
    return branches(restrict(source, classes), classes.target_mask)


def balanced_items(
    source: Branches, target: Branches, num_classes: int
) -> tuple[star.StarItems, star.StarItems]:
    """Give both tasks the target's class shares; the radius is the certainty.

    Classes without items on one of both sides have no mass.
    """
    dtype = source.certainty.dtype

    def counts(items):
        return jax.ops.segment_sum(items.mask.astype(dtype), items.labels, num_classes)

    n_s, n_t = counts(source), counts(target)
    share = jnp.where(n_s > 0, n_t, 0.0)
    share = share / jnp.maximum(jnp.sum(share), 1.0)

    def items(x, number):
        mass = jnp.where(x.mask, (share / jnp.maximum(number, 1.0))[x.labels], 0.0)
        return star.StarItems(x.branch, x.certainty, x.labels, mass)

    return items(source, n_s), items(target, n_t)


def cut_distances(
    source: star.StarItems, target: star.StarItems, num_classes: int
) -> Float[Array, "2 cuts cuts"]:
    """Distances of a pair for every cut of the source (rows) and of the target, to the
    nearest of few levels: those of `directed` and of `theorem`, per unit of scale.

    Args:
      source, target: items whose radius is their certainty, from 0 for guessing to 1.
      num_classes: K, static.
    """
    dtype = source.radius.dtype
    index = jnp.arange(num_classes, dtype=jnp.int32)

    def tails(items):
        """Mass of each class on each branch beyond each level, `(K, K, levels)`."""
        level = jnp.clip((items.radius * _LEVELS).astype(jnp.int32), 0, _LEVELS - 1)
        cell = (items.labels * num_classes + items.branch) * _LEVELS + level
        at = jax.ops.segment_sum(items.mass, cell, num_classes**2 * _LEVELS)
        at = at.reshape(num_classes, num_classes, _LEVELS)
        return jnp.cumsum(at[..., ::-1], axis=-1)[..., ::-1]

    def of_class(x):
        t, mine, theirs = x
        net = mine[:, :, None] - theirs[:, None]
        harder = jnp.maximum(jnp.where((index == t)[:, None, None], net, -net), 0.0)
        return jnp.stack([jnp.sum(harder, axis=0), jnp.sum(jnp.abs(net), axis=0)])

    together = (index, tails(source), tails(target))
    if num_classes <= _MOST_AT_ONCE:
        by_class = jax.vmap(of_class)(together)
    else:
        by_class = lax.map(of_class, together)
    by_level = jnp.sum(by_class, axis=0)  # (2, levels, levels)
    # The radius is above r where the certainty is above these levels.
    radii = (jnp.arange(_RADII, dtype=dtype) + 0.5) / _RADII
    low, high = jnp.asarray(CUTS, dtype).T
    beyond = jnp.round(low[:, None] + (high - low)[:, None] * radii[None]).astype(
        jnp.int32
    )
    beyond = jnp.minimum(beyond, _LEVELS - 1)
    return jnp.mean(by_level[:, beyond[:, None], beyond[None]], axis=-1)


def choose_star(
    source: star.StarItems,
    target: star.StarItems,
    log_prior: Float[Array, " K"],
) -> tuple[StarChoice, StarChoice]:
    """Choose cuts and scale of least `directed`, and of least `theorem`.

    The source's cut and the scale decide the source's loss, so the target's cut is that
    of least distance. For each cut the bound is convex in the scale, so the sign of its
    slope says on which side the minimum lies.

    Args:
      source, target: items that learn, whose radius is their certainty.
      log_prior: `(K,)`, log p_T; -inf for classes without items.

    Returns:
      Both choices.
    """
    size, dtype = log_prior.shape[0], source.radius.dtype
    number = jnp.maximum(jnp.sum(log_prior > -jnp.inf, dtype=dtype), 2.0)
    guessing = 1.0 / number

    def from_guessing(items):
        shares = (items.radius - guessing) / (1.0 - guessing)
        return items._replace(radius=jnp.clip(shares, 0.0, 1.0))

    source = from_guessing(source)
    every = cut_distances(source, from_guessing(target), size)
    distances, nearest = jnp.min(every, axis=2), jnp.argmin(every, axis=2)
    cuts = jnp.asarray(CUTS, dtype) / _LEVELS
    radius = jax.vmap(lambda c: star.star_radius(source.radius, c))(cuts)
    own = (source.branch == source.labels).astype(dtype)
    share = jnp.exp(log_prior)[source.branch]
    # A class that has all the mass is certain at any scale.
    offset = jnp.log(share) - jnp.log(jnp.maximum(1.0 - share, 1e-6))
    own, offset = own[None, None], offset[None, None]

    def step(bracket, _):
        low, high = bracket
        middle = jnp.sqrt(low * high)
        shift = jax.nn.sigmoid(middle[..., None] * radius[None] + offset) - own
        falls = (radius[None] * shift) @ source.mass + distances < 0
        return (jnp.where(falls, middle, low), jnp.where(falls, high, middle)), None

    bracket = tuple(jnp.full(distances.shape, scale, dtype) for scale in SCALES)
    (low, high), _ = lax.scan(step, bracket, None, length=_HALVINGS)
    scales = jnp.sqrt(low * high)

    def value(radius, scale, distance):
        items = source._replace(radius=radius)
        losses = star.star_losses(items, log_prior, scale)
        return expected_loss(losses, source.mass) + scale * distance

    over_cuts = jax.vmap(value)
    values = jax.vmap(over_cuts, in_axes=(None, 0, 0))(radius, scales, distances)
    zero = jnp.zeros((), dtype)
    guess = value(radius[0], zero, zero)

    def best(values, scales, nearest):
        at = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
        better = values[at] < guess
        return StarChoice(
            guessing + cuts[at] * (1.0 - guessing),
            guessing + cuts[nearest[at]] * (1.0 - guessing),
            jnp.where(better, scales[at], 0.0),
        )

    directed, theorem = (
        best(*(v[k] for v in (values, scales, nearest))) for k in (0, 1)
    )
    return directed, theorem


def fit_star(
    source: LabelledLogits,
    fit: SourceFit,
    target: Branches,
    classes: ClassAssignment,
    log_prior: Float[Array, " K_T"],
) -> StarFit:
    """Choose the star of a pair on items that learn.

    Args:
      source: logits of the inner folds.
      fit: of the source.
      target: of `branches`, by logits of the inner folds.
      classes: the cheapest assignment, where the alignment begins.
      log_prior: `(K_T,)`, log p_T; -inf for padding.
    """
    size = log_prior.shape[0]
    found = star_classes(classes, fit, log_prior)
    if size <= MOST_ALIGNED:
        begin = balanced_items(source_branches(source, found), target, size)
        order = align_classes(*begin, log_prior)
        found = found._replace(source_class=found.source_class[order])
        found = _with_shift(found, fit, log_prior)
    items = balanced_items(source_branches(source, found), target, size)
    return StarFit(found, *choose_star(*items, log_prior))


class StarSample(NamedTuple):
    """Items of both tasks in the star, and the classifier there.

    Attributes:
      source, target: the items.
      log_prior: `(K,)`, log p_T.
      scale: s.
    """

    source: star.StarItems
    target: star.StarItems
    log_prior: Array
    scale: Array


def pool_parts(
    source: Branches,
    target: Branches,
    choice: StarChoice,
    log_prior: Float[Array, "parts K"],
) -> StarSample:
    """Join the items of several parts into one sample of each task.

    Every part has classifiers and cuts of its own, which place its items; the distances
    between samples of all parts are then those of larger samples. Parts with another
    scale have branches of another length.

    Args:
      source, target: held-out items, with a leading axis of parts.
      choice: of every part.
      log_prior: log p_T of every part.
    """
    scale = jnp.mean(choice.scale)
    length = choice.scale / jnp.where(scale > 0, scale, 1.0)

    def joined(items, cut):
        radius = jax.vmap(star.star_radius)(items.certainty, cut) * length[:, None]
        placed = items._replace(certainty=radius)
        return jax.tree.map(lambda v: v.reshape(-1), placed)

    prior = jnp.log(jnp.mean(jnp.exp(log_prior), axis=0))
    items = balanced_items(
        joined(source, choice.source_cut),
        joined(target, choice.target_cut),
        prior.shape[0],
    )
    return StarSample(*items, prior, scale)


# -- alignment -------------------------------------------------------------------------


def confusion(items: star.StarItems, num_classes: int) -> Float[Array, "C C"]:
    """Mean certainty with which items of each class (rows) lie on each branch,
    `(C, C)`; rows of classes without items are 0.
    """
    dtype = items.radius.dtype
    used = (items.mass > 0).astype(dtype)
    cell = items.labels * num_classes + items.branch
    sums = jax.ops.segment_sum(used * items.radius, cell, num_classes**2)
    number = jax.ops.segment_sum(used, items.labels, num_classes)
    return sums.reshape(num_classes, -1) / jnp.maximum(number, 1.0)[:, None]


def align(
    source: Float[Array, "C C"],
    target: Float[Array, "C C"],
    weights: Float[Array, " C"],
    allowed: Bool[Array, " C"],
) -> Int[Array, " C"]:
    """Permute the source's classes so that its confusions are most like the target's.

    Minimises `sum_tj w_t |S[o(t), o(j)] - T[t, j]|` by exchanges of two classes, always
    the best one, from the order given until none helps.

    Args:
      source, target: S and T, of classes in the same order.
      weights: w, shares of the target's classes.
      allowed: `(C,)` bool, classes that may change places.

    Returns:
      `(C,)` int32, o.
    """
    size = target.shape[0]
    index = jnp.arange(size, dtype=jnp.int32)
    pairs = allowed[:, None] & allowed[None] & (index[:, None] < index[None])

    def gains(order):
        s = source[order][:, order]
        w = weights

        def gap(a, b):
            return jnp.abs(a - b)

        # Row i against row j of S, and column i against column j, for all of them.
        rows = w[:, None] * jnp.sum(gap(s[None], target[:, None]), axis=2)
        columns = jnp.sum(
            w[:, None, None] * gap(s[:, None, :], target[:, :, None]), axis=0
        )

        def exchanged(v):
            own = jnp.diagonal(v)
            return v + v.T - own[:, None] - own[None]

        diagonal, diagonal_t = jnp.diagonal(s), jnp.diagonal(target)
        # What rows and columns say of the four entries where both meet is replaced.
        st, tt = s.T, target.T
        si, sj, ti, tj = (
            diagonal[:, None],
            diagonal[None],
            diagonal_t[:, None],
            diagonal_t[None],
        )
        wi, wj = w[:, None], w[None]
        before = wi * (gap(si, ti) + gap(s, target)) + wj * (gap(st, tt) + gap(sj, tj))
        after = wi * (gap(sj, ti) + gap(st, target)) + wj * (gap(s, tt) + gap(si, tj))
        by_rows = wi * (
            gap(st, ti) + gap(sj, target) - gap(si, ti) - gap(s, target)
        ) + wj * (gap(si, tt) + gap(s, tj) - gap(st, tt) - gap(sj, tj))
        by_columns = wi * (
            gap(s, ti) + gap(si, target) - gap(si, ti) - gap(s, target)
        ) + wj * (gap(sj, tt) + gap(st, tj) - gap(st, tt) - gap(sj, tj))
        change = exchanged(rows) + exchanged(columns) - by_rows - by_columns
        return jnp.where(pairs, change + after - before, jnp.inf)

    def unfinished(carry):
        _, count, best = carry
        return (best < -1e-5) & (count < 4 * size)

    def step(carry):
        order, count, _ = carry
        change = gains(order)
        at = jnp.argmin(change)
        best = change.ravel()[at]
        i, j = at // size, at % size
        swapped = order.at[i].set(order[j]).at[j].set(order[i])
        return jnp.where(best < -1e-5, swapped, order), count + 1, best

    start = (index, jnp.zeros((), jnp.int32), jnp.asarray(-jnp.inf, source.dtype))
    return lax.while_loop(unfinished, step, start)[0]


def align_classes(
    source: star.StarItems, target: star.StarItems, log_prior: Float[Array, " K"]
) -> Int[Array, " K"]:
    """Exchange assigned source classes so that confusions are alike, `(K,)` int32.

    Classes without items on one of both sides stay where they are.
    """
    size = log_prior.shape[0]
    mine, theirs = (confusion(x, size) for x in (source, target))
    both = (jnp.sum(mine, axis=1) > 0) & (jnp.sum(theirs, axis=1) > 0)
    return align(mine, theirs, jnp.exp(log_prior), both)
