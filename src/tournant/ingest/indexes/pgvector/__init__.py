"""An index in PostgreSQL with pgvector, for more than one machine: many processes may write to it at once.

`index` has the index itself; `address` reads its URL, `connections` keeps and mends connections, `schema` makes and
migrates the tables, `rows` moves documents in, `searching` finds them, `structures` builds what makes that fast, `ledger`
records what is done, `errors` says what PostgreSQL means. psycopg is imported when the first URL is opened.
"""
