"""What notebooks are made with: the workbench, widgets, figures, and the report."""
