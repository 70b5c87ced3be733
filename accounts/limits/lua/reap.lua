-- Charge the bound of reservations whose lease has run out. ARGV: clock override, at most so many. Answers how many.
return reap(clock(ARGV[1]), tonumber(ARGV[2]))
