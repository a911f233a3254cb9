"""What the commands run: a demo, pictures, timing. Each asks a model and returns plain values; nothing prints."""
