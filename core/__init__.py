"""Mixers, orders, blocks and the training base that every domain shares."""
