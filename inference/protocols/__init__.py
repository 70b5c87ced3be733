"""What the endpoints of providers have in common and how they differ, as far as the pipeline has to know."""
