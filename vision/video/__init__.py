"""Video: recognition and prediction."""
