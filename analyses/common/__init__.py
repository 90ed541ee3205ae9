"""What the analysis scripts share."""
