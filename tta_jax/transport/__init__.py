"""Optimal transport: entropic plans and certified costs."""

from tta_jax.transport import certified_cost as certified_cost
from tta_jax.transport import sinkhorn as sinkhorn
