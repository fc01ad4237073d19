"""Image and video backbones and their tasks."""
