"""Picture to picture: files, windows and pasting, the sampling loop, and what it runs on."""
