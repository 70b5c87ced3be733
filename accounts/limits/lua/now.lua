-- Give the time (µs) by Redis's clock. ARGV: clock override.
return clock(ARGV[1])
