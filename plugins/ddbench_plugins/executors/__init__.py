"""Executors for clusters, one file each; the packages that they need are extras, imported when they are used."""
