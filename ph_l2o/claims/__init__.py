"""Claims of a published study: what they need, what is measured for them, and what comes of it."""
