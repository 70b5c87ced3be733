"""The protocols of providers' endpoints, as far as the pipeline needs them: bounds, usage, events and content."""
