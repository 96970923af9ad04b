"""The leaderboard: sets and judgements to rows, honest statistics, the page that shows them, and the gate that compares stores.

`join` joins sets and judgements to results, `sections` groups these to tables of `rows`, which `naming` tells apart,
`statistics` turns accuracies into numbers, `knowledge` tells what sets saw, `tables` turns rows into tables, `costs` tells what
judging cost, `habits` what habits of published code are worth; `page` writes leaderboard.md with the words of `legend`, and
`beside` what lies beside it; `baseline` and `gate` compare a store with an earlier one.
"""
