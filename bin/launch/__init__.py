"""What bin/run and bin/test are made of: the standard library only, since it runs before anything is installed."""
