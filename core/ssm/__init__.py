"""Structured state spaces: HiPPO matrices, discretisation, and running a time-invariant system over a sequence."""
