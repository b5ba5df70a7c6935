"""Ready-made steps for agents: each call makes one step."""

from streams.steps.deduplicate import deduplicate
from streams.steps.enrich import enrich, known
from streams.steps.units import convert

__all__ = ["convert", "deduplicate", "enrich", "known"]
