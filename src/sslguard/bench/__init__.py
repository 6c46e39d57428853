"""One benchmark for every scheme and every attack: a grid of encoder × scheme × attack × seed, from one TOML file.

`config` reads the file, `plan` divides the grid into cells, `work` computes a cell, `cells` and `cluster` run the
cells, `rows` and `summary` collect the results, and `page` renders them.
"""
