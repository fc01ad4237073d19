"""Detection in point clouds."""
