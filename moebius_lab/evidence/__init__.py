"""Whether the port is still the same model, how fast it is, and how good its fills are."""
