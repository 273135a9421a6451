"""Reports as one self-contained HTML page: no network, no external fonts or scripts, no markup made from data."""
