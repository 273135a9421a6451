"""Writing specs: formatting them, bringing them up to date, and starting a variant of a known model."""
