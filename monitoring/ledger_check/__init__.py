"""Compares the ledgers of the limits with the records: what was charged to keys, accounts and budgets for models.

A call is charged and its record sent off in one step, so a ledger holds at any moment what the records in the database
and in the stream add up to. But store and database can't be read in the same moment. So the ledgers are read first,
then the stream, then the database, then the ledgers again. What was in a ledger at first is found in the stream or in
the database (or in both, known by its id), and what is found there is in the ledger at last. A ledger that nobody used
meanwhile must hold exactly what was found; of one in use a look tells how far it is off at least and at most.

Several looks are taken: each narrows down one in use, and what is charged late, because Redis was away for a moment, is
there at the next. Reservations are compared with what open calls hold, which the store tells in one step.

`holders` are whose ledgers there are, `waiting` what the stream adds to the database, `excess` what a look tells, and
`check` looks.
"""
