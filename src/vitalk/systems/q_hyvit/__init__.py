"""Q-HyViT."""
