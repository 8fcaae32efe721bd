"""Parts that sight and speech share."""
