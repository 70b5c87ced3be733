-- Add a correction to a ledger; it is a difference because open calls change the ledger meanwhile.
-- ARGV: clock override, month, subject, then by how much: settled tokens and cost, reserved tokens and cost.
ledger_move(P .. ARGV[3] .. ':m:' .. ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]))
return 1
