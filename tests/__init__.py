"""End-to-end tests: real processes, real servers, real clients, a real browser."""
