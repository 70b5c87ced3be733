"""Sample data: accounts, keys and two months of requests, to look at the platform before anybody uses it."""
