"""The built-in text-to-image model: drawing, training, checkpoint."""
