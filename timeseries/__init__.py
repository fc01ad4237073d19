"""Forecasting and classification of series."""
