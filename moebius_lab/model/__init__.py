"""The published network in PyTorch: its layers, its schedule, its weights from files and hubs."""
