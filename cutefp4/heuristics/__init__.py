"""Shape -> configuration, one file per architecture; pure Python."""
