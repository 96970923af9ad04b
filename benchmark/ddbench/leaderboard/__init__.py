"""The leaderboard: records to rows, honest statistics, the page that shows them, and the gate that compares two stores.

`cells` checks records, `rows` groups and names them, `statistics` turns accuracies into numbers, `tables` turns
rows into tables, `costs` tells what judging cost, `habits` what habits of published code are worth; `page` writes
leaderboard.md and what lies beside it, with the words of `legend`; `baseline` and `gate` compare a store with an
earlier one.
"""
